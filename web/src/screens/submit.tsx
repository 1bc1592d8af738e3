// A new job: a form and the same as YAML, each following the other, checked by the server as one types.
import { useMemo } from "preact/hooks";
import { allMethods, type Schema } from "../api/catalog";
import { get, post, type Json, type Schemas } from "../api/client";
import { useLoaded } from "../ui/loading";
import { Heading, Loading, Problem, Section, Told } from "../ui/parts";
import { to, type Place } from "../ui/router";
import { asObject, faultsAt, SchemaForm } from "../ui/schemaform";
import { fieldsOf, MethodChoice, newestModel, Rest, SpecForm, text, Training, useRanked, What, type PartProps } from "./specform";

const FIELDS = ["name", "task", "teacher", "teachers", "teacher_weighting", "student", "dataset", "method", "training", "baseline", "resources", "max_attempts", "checkpoints_last", "priority", "labels", "report", "exports"];

export function Submit({ place }: { place: Place }) {
  const from = place.query.get("from");
  const start = useLoaded(async (signal): Promise<Json> => {
    if (from !== null) {
      const job = await get("/v1/jobs/{job_id}", { path: { job_id: from }, signal });
      return fieldsOf(job.spec, FIELDS);
    }
    const teacher = place.query.get("teacher") ?? (await newestModel(signal));
    return {
      name: "my-first-student",
      ...(teacher ? { teacher } : {}),
      student: { network: "retort/resnet8" },
      dataset: "digits@1",
      method: { name: place.query.get("method") ?? (teacher ? "kd" : "ce") },
      training: { recipe: "small", epochs: 10 },
    };
  }, [from, place.query.toString()]);
  if (start.error) {
    return (
      <>
        <Heading title="New job" />
        <Problem error={start.error} onRetry={start.reload} />
      </>
    );
  }
  if (start.data === undefined) return <Loading rows={10} />;
  return (
    <SpecForm
      key={from ?? ""}
      title="New job"
      of="The job"
      start={start.data}
      command="retort submit spec.yaml"
      validate={(spec, signal) => post("/v1/jobs/validate", { body: spec as Schemas["JobSpec"], signal })}
      submit={async (spec, key) => to("jobs", (await post("/v1/jobs", { body: spec as Schemas["JobSpec"], headers: { "Idempotency-Key": key } })).id)}
      accepted={() => <p class="notice-title">This job would be accepted</p>}
    >
      {(part) => (
        <>
          <What {...part} />
          <How {...part} />
          <Training {...part} />
          <Rest {...part} />
        </>
      )}
    </SpecForm>
  );
}

function How({ spec, set, faults }: PartProps) {
  const methods = useLoaded(() => allMethods(), []);
  const method = asObject(spec["method"]);
  const name = text(method["name"]);
  const known = methods.data?.find((one) => one.name === name);
  // What a method must fit: all but the method, its name and what concerns the queue.
  const asked = useMemo(() => Object.fromEntries(Object.entries(spec).filter(([key]) => !["method", "baseline", "labels", "priority", "name"].includes(key))), [spec]);
  const ranked = useRanked(asked);
  return (
    <Section title="How it learns" aside={known && <a href={to("methods", name)} target="_blank" rel="noopener">About {name}</a>}>
      {methods.error && <Problem error={methods.error} onRetry={methods.reload} />}
      <MethodChoice name={name} methods={methods.data ?? []} ranked={ranked.data ?? null} faults={[...faultsAt(faults, ["method"], false), ...faultsAt(faults, ["method", "name"])]} onChange={(value) => set(["method"], { name: value })} />
      {known && (
        <>
          <p class="prose muted small"><Told text={known.description} /></p>
          <SchemaForm schema={known.params_schema as Schema} value={method} path={["method"]} presets={{ balance: "by the recipe" }} without={["name"]} set={set} faults={faults} />
        </>
      )}
    </Section>
  );
}

