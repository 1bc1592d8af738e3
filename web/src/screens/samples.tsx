// The sample sheet of a data set: a few pictures of each class, with boxes and masks over them.
import { useEffect, useState } from "preact/hooks";
import { get, type Schemas } from "../api/client";
import { blobOf, ClassToggles, Overlay } from "../charts/overlay";
import { useLoaded } from "../ui/loading";
import { Loading, Notes, Problem, Section } from "../ui/parts";

type Picture = Schemas["SamplePicture"];

export function Samples({ name, version, classes }: { name: string; version: number; classes: string[] }) {
  const [hidden, setHidden] = useState<string[]>([]);
  const loaded = useLoaded(
    async (signal) => {
      // A worker makes them when they are first asked for; each question waits for some time.
      for (;;) {
        const it = await get("/v1/datasets/{name}/versions/{version}/samples", { path: { name, version }, query: { wait_seconds: 20 }, signal });
        if (it.state === "ready") return it;
        if (it.state === "failed") throw new Error(it.failure?.message ?? "The pictures could not be made.");
      }
    },
    [name, version],
  );
  const urls = useUrls(loaded.data);
  const groups = (loaded.data?.classes ?? []).filter((one) => one.pictures.length > 0);
  const pictures = groups.flatMap((one) => one.pictures);
  const hasMasks = pictures.some((one) => one.mask_png);
  const isDense = hasMasks || pictures.some((one) => one.boxes);
  const drawn = hasMasks ? groups.flatMap((one) => one.class ?? []) : [...new Set(pictures.flatMap((one) => (one.boxes ?? []).map((box) => box.class)))];
  return (
    <Section title="Samples" aside={<span class="small muted">of the training images</span>}>
      {loaded.error && <Problem error={loaded.error} onRetry={loaded.reload} />}
      {loaded.isLoading && <Loading rows={4} />}
      {loaded.data && <Notes title="Not all is shown" lines={loaded.data.notes} />}
      {loaded.data && groups.length === 0 && <p class="muted">No image of the training split shows one of the classes.</p>}
      {isDense && <ClassToggles classes={classes} shown={drawn} hidden={hidden} onChange={setHidden} />}
      <div class={`sheet${isDense ? " dense" : ""}`}>
        {groups.map((group) => (
          <div key={group.class}>
            <h3>{group.class ?? "without a label"}</h3>
            <ul>
              {group.pictures.map((one) => (
                <li key={one.index}>
                  <Overlay src={urls.get(one) ?? ""} alt={altOf(group.class, one)} classes={classes} boxes={boxesOf(one)} mask={one.mask_png ?? null} hidden={hidden} isThumbnail />
                </li>
              ))}
            </ul>
          </div>
        ))}
      </div>
    </Section>
  );
}

/** Return addresses of the pictures, which hold as long as they are shown. */
function useUrls(sheet: Schemas["SamplesRead"] | undefined): Map<Picture, string> {
  const [urls, set] = useState(new Map<Picture, string>());
  useEffect(() => {
    const pictures = (sheet?.classes ?? []).flatMap((one) => one.pictures);
    const made = new Map(pictures.map((one) => [one, URL.createObjectURL(blobOf(one.content, one.media_type))]));
    set(made);
    return () => made.forEach((url) => URL.revokeObjectURL(url));
  }, [sheet]);
  return urls;
}

function altOf(name: string | null, picture: Picture): string {
  return `${name ?? "without a label"}: image ${picture.index}`;
}

function boxesOf(picture: Picture) {
  return (picture.boxes ?? []).map((one) => ({ name: one.class, box: one.box, isDashed: !one.is_ordinary }));
}
