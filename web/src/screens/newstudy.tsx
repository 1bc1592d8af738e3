// A new study: methods with grids of values, and seeds; a form and the same as YAML.
import { useMemo } from "preact/hooks";
import { allMethods, type Schema } from "../api/catalog";
import { get, post, type Json, type Schemas } from "../api/client";
import { count } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Field, Heading, Loading, Problem, Section, Told } from "../ui/parts";
import { to, type Place } from "../ui/router";
import { asObject, faultsAt, read, SchemaForm, TextInput } from "../ui/schemaform";
import { fieldsOf, MethodChoice, newestModel, Rest, SpecForm, text, Training, useRanked, What, type PartProps } from "./specform";

// Of a job, what a study of it has as well.
const FIELDS = ["task", "teacher", "teachers", "teacher_weighting", "dataset", "resources", "max_attempts", "checkpoints_last", "priority", "labels", "report"];
const SEEDS: Schema[] = [{ type: "integer" }];
const MOST_VARIANTS = 12;

export function NewStudy({ place }: { place: Place }) {
  const from = place.query.get("from");
  const start = useLoaded(async (signal): Promise<Json> => {
    if (from !== null) {
      const job = await get("/v1/jobs/{job_id}", { path: { job_id: from }, signal });
      const { seed: _, ...training } = asObject(job.spec["training"]);
      // A study's students are no versions of the job's own model.
      const { register_as: _name, ...student } = asObject(job.spec["student"]);
      return { name: `${job.name}-study`, ...fieldsOf(job.spec, FIELDS), student, methods: [job.spec["method"]], training, seeds: [0, 1, 2] };
    }
    const teacher = place.query.get("teacher") ?? (await newestModel(signal));
    return {
      name: "my-first-study",
      ...(teacher ? { teacher } : {}),
      student: { network: "retort/resnet8" },
      dataset: "digits@1",
      methods: teacher ? [{ name: "kd" }, { name: "dkd" }] : [{ name: "ce" }],
      training: { recipe: "small", epochs: 10 },
      seeds: [0, 1, 2],
    };
  }, [from, place.query.toString()]);
  if (start.error) {
    return (
      <>
        <Heading title="New study" />
        <Problem error={start.error} onRetry={start.reload} />
      </>
    );
  }
  if (start.data === undefined) return <Loading rows={10} />;
  return (
    <SpecForm
      key={from ?? ""}
      title="New study"
      of="The study"
      start={start.data}
      command="retort study submit study.yaml"
      validate={(spec, signal) => post("/v1/studies/validate", { body: spec as Schemas["StudySpec"], signal })}
      submit={async (spec, key) => to("studies", (await post("/v1/studies", { body: spec as Schemas["StudySpec"], headers: { "Idempotency-Key": key } })).id)}
      accepted={(plan) => <Planned plan={plan} />}
    >
      {(part) => (
        <>
          <What {...part} />
          <Methods {...part} takesGrids />
          <Training {...part} takesGrids />
          <Rest {...part} hasBaseline />
        </>
      )}
    </SpecForm>
  );
}

function Planned({ plan }: { plan: Schemas["StudyPlanRead"] }) {
  return (
    <>
      <p class="notice-title">
        This study would be accepted: {plan.spec.search ? "at most " : ""}
        {count(plan.job_count)} jobs
        {plan.variants.length > 0 && ` of ${count(plan.variants.length)} variants`}
      </p>
      {plan.variants.length > 0 && (
        <ul>
          {plan.variants.slice(0, MOST_VARIANTS).map((one) => (
            <li key={one.variant}>{one.name}</li>
          ))}
        </ul>
      )}
      {plan.variants.length > MOST_VARIANTS && <p>and {plan.variants.length - MOST_VARIANTS} more</p>}
    </>
  );
}

/** The methods that are compared, and the seeds by which each is trained. */
function Methods({ spec, set, faults, takesGrids = false }: PartProps) {
  const known = useLoaded(() => allMethods(), []);
  const methods: unknown[] = Array.isArray(spec["methods"]) ? spec["methods"] : [];
  const seeds = Array.isArray(spec["seeds"]) ? spec["seeds"].join(", ") : "";
  // What the methods must fit; settings of the training may be grids, which no job has.
  const asked = useMemo(() => Object.fromEntries(["task", "teacher", "teachers", "student", "dataset"].flatMap((name) => (spec[name] === undefined ? [] : [[name, spec[name]]]))), [spec]);
  const ranked = useRanked(asked);
  return (
    <Section title="What is compared">
      <Field label="Seeds" hint="One job of every variant for each. Two show a spread, three give a verdict; a p below 0.05 needs six." faults={faultsAt(faults, ["seeds"])}>
        {(attributes) => <TextInput {...attributes} value={seeds} placeholder="0, 1, 2" onCommit={(written) => set(["seeds"], written.split(",").flatMap((part) => (part.trim() === "" ? [] : [read(part, SEEDS)])))} />}
      </Field>
      <p class="hint">A field with several values, such as <code>1, 2, 4</code>, makes a variant of each; several such fields make one of every combination.</p>
      {known.error && <Problem error={known.error} onRetry={known.reload} />}
      {faultsAt(faults, ["methods"], false).map((one) => (
        <p key={one} class="fault"><Told text={one} /></p>
      ))}
      <div class="grid">
        {methods.map((one, index) => {
          const method = asObject(one);
          const name = text(method["name"]);
          const found = known.data?.find((each) => each.name === name);
          return (
            <fieldset key={index} class="group">
              <legend>Method {index + 1}</legend>
              <MethodChoice name={name} methods={known.data ?? []} ranked={ranked.data ?? null} faults={[...faultsAt(faults, ["methods", index], false), ...faultsAt(faults, ["methods", index, "name"])]} onChange={(value) => set(["methods", index], { name: value })} />
              {found && (
                <details open={Object.keys(method).length > 1 || faults.some((fault) => fault.pointer.startsWith(`/methods/${index}/`))}>
                  <summary>Settings of {name}</summary>
                  <SchemaForm schema={found.params_schema as Schema} value={method} path={["methods", index]} presets={{ balance: "by the recipe" }} without={["name"]} set={set} faults={faults} takesGrids={takesGrids} />
                </details>
              )}
              {methods.length > 1 && (
                <button type="button" class="link" onClick={() => set(["methods", index], undefined)}>
                  Remove {name || "it"}
                </button>
              )}
            </fieldset>
          );
        })}
      </div>
      <div>
        <button type="button" onClick={() => set(["methods", methods.length], { name: "kd" })}>
          Add a method
        </button>
      </div>
    </Section>
  );
}
