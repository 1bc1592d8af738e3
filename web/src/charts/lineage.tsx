// Where a version comes from and what was made of it, drawn from left to right.
import type { Schemas } from "../api/client";
import { to, toReference } from "../ui/router";

interface Node {
  id: string;
  kind: string;
  title: string;
  href: string | null;
  column: number;
  isSelf?: boolean;
}

interface Edge {
  from: string;
  to: string;
}

const WIDTH = 176;
const HEIGHT = 46;
const GAP_X = 56;
const GAP_Y = 16;
const MOST_CHILDREN = 8;

type Lineage = Schemas["LineageRead"];

/** Draw versions, data sets and jobs; `ancestors` are the lineages of its teachers, where known. */
export function LineageGraph({ of, ancestors }: { of: Lineage; ancestors: Lineage[] }) {
  const { nodes, edges, left } = graph(of, ancestors);
  const columns = [...new Set(nodes.map((node) => node.column))].sort((a, b) => a - b);
  const tallest = Math.max(...columns.map((column) => nodes.filter((node) => node.column === column).length));
  const height = tallest * (HEIGHT + GAP_Y) - GAP_Y + 2;
  const width = columns.length * (WIDTH + GAP_X) - GAP_X + 2;
  const places = new Map<string, { x: number; y: number }>();
  columns.forEach((column, index) => {
    const members = nodes.filter((node) => node.column === column);
    const top = (height - (members.length * (HEIGHT + GAP_Y) - GAP_Y)) / 2;
    members.forEach((node, row) => places.set(node.id, { x: 1 + index * (WIDTH + GAP_X), y: top + row * (HEIGHT + GAP_Y) }));
  });
  return (
    <>
      <div class="lineage" role="region" aria-label="Lineage, from left to right" tabIndex={0}>
        <svg viewBox={`0 0 ${width} ${height}`} style={{ maxWidth: `${width * 1.15}px` }} role="group" aria-label="Lineage">
          {edges.map((edge) => {
            const from = places.get(edge.from);
            const into = places.get(edge.to);
            if (!from || !into) return null;
            const x1 = from.x + WIDTH;
            const y1 = from.y + HEIGHT / 2;
            const y2 = into.y + HEIGHT / 2;
            const middle = (x1 + into.x) / 2;
            return <path key={`${edge.from}>${edge.to}`} d={`M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${into.x} ${y2}`} />;
          })}
          {nodes.map((node) => {
            const place = places.get(node.id);
            if (!place) return null;
            const box = (
              <g class={node.isSelf ? "self" : ""} transform={`translate(${place.x} ${place.y})`}>
                <title>{`${node.kind}: ${node.title}`}</title>
                <rect width={WIDTH} height={HEIGHT} rx="8" />
                <text class="kind" x="12" y="18">{node.kind}</text>
                <text x="12" y="35">{cut(node.title)}</text>
              </g>
            );
            return node.href === null ? <g key={node.id}>{box}</g> : <a key={node.id} href={node.href}>{box}</a>;
          })}
        </svg>
      </div>
      {left > 0 && <p class="small muted">{left} more were made from it; they are not drawn.</p>}
    </>
  );
}

function cut(text: string): string {
  return text.length > 21 ? `${text.slice(0, 9)}…${text.slice(-9)}` : text;
}

function graph(of: Lineage, ancestors: Lineage[]): { nodes: Node[]; edges: Edge[]; left: number } {
  const nodes = new Map<string, Node>();
  const edges: Edge[] = [];
  const add = (node: Node) => {
    if (!nodes.has(node.id)) nodes.set(node.id, node);
    return node.id;
  };
  const model = (reference: string, column: number, kind: string, isDeleted = false) =>
    add({ id: reference, kind: isDeleted ? `${kind}, deleted` : kind, title: reference, href: isDeleted ? null : toReference("models", reference), column });
  const behind = (one: Lineage, column: number) => {
    const back = one.backward;
    const known = ancestors.map((other) => other.reference);
    const source = back.job
      ? add({ id: back.job, kind: "job", title: back.job, href: to("jobs", back.job), column: column - 1 })
      : back.upload
        ? add({ id: back.upload, kind: "upload", title: back.upload, href: null, column: column - 1 })
        : null;
    if (source !== null) edges.push({ from: source, to: one.reference });
    const into = source ?? one.reference;
    for (const teacher of back.teachers) {
      edges.push({ from: model(teacher.reference, column - 2, "teacher", teacher.deleted), to: into });
    }
    if (back.initial) edges.push({ from: model(back.initial.reference, column - 2, "initial weights", back.initial.deleted), to: into });
    if (back.dataset) {
      const data = add({ id: `data ${back.dataset}`, kind: "data set", title: back.dataset, href: toReference("datasets", back.dataset), column: column - 2 });
      edges.push({ from: data, to: into });
    }
    for (const other of ancestors) {
      if (known.includes(other.reference) && back.teachers.some((teacher) => teacher.reference === other.reference)) behind(other, column - 2);
    }
  };
  add({ id: of.reference, kind: "this version", title: of.reference, href: null, column: 0, isSelf: true });
  behind(of, 0);
  const children = of.forward.data;
  for (const child of children.slice(0, MOST_CHILDREN)) {
    edges.push({ from: of.reference, to: model(child.reference, 1, child.job ? "student" : "made from it", child.deleted) });
  }
  for (const dataset of of.datasets.slice(0, MOST_CHILDREN)) {
    const id = add({ id: `made ${dataset}`, kind: "synthetic data", title: dataset, href: toReference("datasets", dataset), column: 1 });
    edges.push({ from: of.reference, to: id });
  }
  const left = Math.max(0, children.length - MOST_CHILDREN) + Math.max(0, of.datasets.length - MOST_CHILDREN);
  return { nodes: [...nodes.values()], edges, left };
}
