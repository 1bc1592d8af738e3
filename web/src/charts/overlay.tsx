// Boxes and masks drawn over a picture, in the colours of their classes, which can be hidden.
import { useEffect, useRef, useState } from "preact/hooks";
import { colour, onColours } from "../ui/theme";
import { COLOURS } from "./palette";

/** An object; its corners x1, y1, x2, y2 are shares 0..1 of the picture's sides. */
export interface DrawnBox {
  name: string;
  box: number[];
  /** Written behind the name, such as a score. */
  note?: string;
  isDashed?: boolean;
}

interface OverlayProps {
  src: string;
  alt: string;
  /** All classes in their order, by which colours are given and the numbers of a mask are read. */
  classes: string[];
  boxes?: DrawnBox[];
  /** A grey PNG in base64 with the number of each pixel's class. */
  mask?: string | null;
  hidden: string[];
  /** Shown small: names are written larger. */
  isThumbnail?: boolean;
}

/** Pictures up to it are enlarged pixel by pixel; larger ones are smoothed. */
const TINY_SIDE = 128;

/** Return the name of a class's colour in styles.css; the ninth class looks like the first. */
export function colourOf(classes: string[], name: string): string {
  return COLOURS[Math.max(0, classes.indexOf(name)) % COLOURS.length] ?? "c1";
}

/** A picture, with what is known or said of it drawn over. */
export function Overlay({ src, alt, classes, boxes = [], mask, hidden, isThumbnail = false }: OverlayProps) {
  const [size, setSize] = useState<[number, number]>([1, 1]);
  const shown = boxes.filter((one) => !hidden.includes(one.name));
  const told = [...new Set(shown.map((one) => one.name))].join(", ");
  // Written in the picture's own pixels, so that text keeps its shape whatever the sides are.
  const [wide, tall] = size;
  const letter = Math.max(wide, tall) / (isThumbnail ? 11 : 22);
  return (
    <div class={`overlay${Math.max(wide, tall) <= TINY_SIDE ? " tiny" : ""}`}>
      {src !== "" && <img src={src} alt={alt} onLoad={(event) => setSize([event.currentTarget.naturalWidth, event.currentTarget.naturalHeight])} />}
      {mask && <Mask mask={mask} classes={classes} hidden={hidden} />}
      {shown.length > 0 && (
        <svg viewBox={`0 0 ${wide} ${tall}`} role="img" aria-label={`Boxes: ${told}`}>
          {shown.map((one, index) => {
            const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = one.box;
            return (
              <g key={index} class={colourOf(classes, one.name)}>
                <rect x={x1 * wide} y={y1 * tall} width={Math.max(0, x2 - x1) * wide} height={Math.max(0, y2 - y1) * tall} vector-effect="non-scaling-stroke" {...(one.isDashed ? { "stroke-dasharray": "4 3" } : {})} />
                <text x={x1 * wide + letter / 4} y={Math.max(letter, y1 * tall + letter)} font-size={letter} stroke-width={letter / 4}>
                  {one.name}
                  {one.note ? ` ${one.note}` : ""}
                </text>
              </g>
            );
          })}
        </svg>
      )}
    </div>
  );
}

/** The pixels of each class in its colour; those of no class, and of hidden ones, are left clear. */
function Mask({ mask, classes, hidden }: { mask: string; classes: string[]; hidden: string[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [colours, setColours] = useState(0);
  useEffect(() => onColours(() => setColours((last) => last + 1)), []);
  useEffect(() => {
    let isOver = false;
    const draw = async () => {
      // Numbers, and no colours: nothing may convert them.
      const picture = await createImageBitmap(blobOf(mask, "image/png"), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
      const element = canvas.current;
      const context = element?.getContext("2d", { willReadFrequently: true });
      if (isOver || !element || !context) return;
      element.width = picture.width;
      element.height = picture.height;
      context.drawImage(picture, 0, 0);
      const pixels = context.getImageData(0, 0, picture.width, picture.height);
      const painted = classes.map((name) => (hidden.includes(name) ? null : channels(colour(colourOf(classes, name)))));
      for (let at = 0; at < pixels.data.length; at += 4) {
        const [red, green, blue, alpha] = painted[pixels.data[at] ?? 255] ?? [0, 0, 0, 0];
        pixels.data.set([red, green, blue, alpha], at);
      }
      context.putImageData(pixels, 0, 0);
    };
    void draw();
    return () => {
      isOver = true;
    };
  }, [mask, classes.join("|"), hidden.join("|"), colours]);
  return <canvas ref={canvas} aria-hidden="true" />;
}

/** Return bytes in base64 as a file that the browser can show. */
export function blobOf(base64: string, type: string): Blob {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type });
}

/** Return red, green, blue and opacity of a computed colour, half of it clear. */
function channels(computed: string): [number, number, number, number] {
  const [red = 0, green = 0, blue = 0] = (computed.match(/[\d.]+/g) ?? []).map(Number);
  return [red, green, blue, 140];
}

/** One box for each class, which shows and hides it. */
export function ClassToggles({ classes, shown, hidden, onChange }: { classes: string[]; shown: string[]; hidden: string[]; onChange: (hidden: string[]) => void }) {
  if (shown.length === 0) return null;
  return (
    <div class="choice small" role="group" aria-label="Classes that are drawn">
      {shown.map((name) => (
        <label key={name}>
          <input type="checkbox" checked={!hidden.includes(name)} onChange={(event) => onChange(event.currentTarget.checked ? hidden.filter((one) => one !== name) : [...hidden, name])} />
          <i class={`key ${colourOf(classes, name)}`} /> {name}
        </label>
      ))}
    </div>
  );
}
