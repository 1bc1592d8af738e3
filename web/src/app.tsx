// The frame: sign-in, navigation, and one screen at a time.
import type { ComponentType } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { remove, whenSignedOut } from "./api/client";
import * as session from "./api/session";
import { Jobs } from "./screens/jobs";
import { SignIn } from "./screens/signin";
import { Empty, Heading, Loading, Problem } from "./ui/parts";
import { to, usePlace, type Place } from "./ui/router";
import { Appearance } from "./ui/theme";

export type Screen = ComponentType<{ place: Place }>;

const MENU: [string, string][] = [
  ["jobs", "Jobs"],
  ["studies", "Studies"],
  ["federations", "Federations"],
  ["models", "Models"],
  ["datasets", "Data sets"],
  ["methods", "Methods"],
  ["workers", "Workers"],
];

// The list of jobs comes with the page; the others when they are first opened.
const SCREENS: [RegExp, () => Promise<Screen>][] = [
  [/^jobs$/, () => Promise.resolve(Jobs)],
  [/^jobs\/[^/]+$/, () => import("./screens/job").then((it) => it.Job)],
  [/^compare$/, () => import("./screens/compare").then((it) => it.Compare)],
  [/^submit$/, () => import("./screens/submit").then((it) => it.Submit)],
  [/^upload$/, () => import("./screens/upload").then((it) => it.Upload)],
  [/^studies$/, () => import("./screens/studies").then((it) => it.Studies)],
  [/^studies\/new$/, () => import("./screens/newstudy").then((it) => it.NewStudy)],
  [/^studies\/[^/]+$/, () => import("./screens/study").then((it) => it.Study)],
  [/^federations$/, () => import("./screens/federations").then((it) => it.Federations)],
  [/^federations\/[^/]+$/, () => import("./screens/federations").then((it) => it.Federation)],
  [/^models$/, () => import("./screens/models").then((it) => it.Models)],
  [/^models\/[^/]+$/, () => import("./screens/models").then((it) => it.Model)],
  [/^models\/[^/]+\/\d+$/, () => import("./screens/version").then((it) => it.ModelVersion)],
  [/^datasets$/, () => import("./screens/datasets").then((it) => it.Datasets)],
  [/^datasets\/[^/]+(\/\d+)?$/, () => import("./screens/datasets").then((it) => it.Dataset)],
  [/^methods$/, () => import("./screens/methods").then((it) => it.Methods)],
  [/^methods\/[^/]+$/, () => import("./screens/methods").then((it) => it.Method)],
  [/^workers$/, () => import("./screens/workers").then((it) => it.Workers)],
];

export function App() {
  const [link, setLink] = useState(session.takeFromAddress);
  const [isSignedIn, setSignedIn] = useState(session.key() !== null && link === null);
  const [told, setTold] = useState<string | null>(null);
  useEffect(
    () =>
      whenSignedOut(() => {
        setTold("Your key has ended or was revoked. Sign in again.");
        setSignedIn(false);
      }),
    [],
  );
  useEffect(() => {
    // A link that is pasted into a tab that shows the page changes the fragment alone.
    const moved = () => {
      const taken = session.takeFromAddress();
      if (taken === null) return;
      const ending = signOut();
      setLink(taken);
      setTold(null);
      setSignedIn(false);
      void ending.then((fault) => fault !== null && setTold(fault));
    };
    // Before the screens see the address, which holds a key.
    window.addEventListener("hashchange", moved, { capture: true });
    return () => window.removeEventListener("hashchange", moved, { capture: true });
  }, []);
  if (!isSignedIn) {
    return (
      <SignIn
        key={link ?? ""}
        link={link}
        told={told}
        onDone={() => {
          setTold(null);
          setLink(null);
          setSignedIn(true);
        }}
      />
    );
  }
  const signedOut = (fault: string | null) => {
    setTold(fault);
    setSignedIn(false);
  };
  return <Frame onSignOut={signedOut} />;
}

/** Sign this tab out, and end a key that it has made for itself. Return why that key lives on. */
async function signOut(): Promise<string | null> {
  const own = session.ownKeyId();
  const ended = own === null ? null : remove("/v1/api-keys/{key_id}", { path: { key_id: own } });
  session.forget();
  try {
    await ended;
    return null;
  } catch (error) {
    return `You are signed out here, but this tab's key was not revoked: ${(error as Error).message} It expires within 12 hours.`;
  }
}

function Frame({ onSignOut }: { onSignOut: (fault: string | null) => void }) {
  const place = usePlace();
  const main = useRef<HTMLElement>(null);
  const path = place.parts.join("/");
  const former = useRef("");
  useEffect(() => {
    if (path === "") location.replace("#/jobs");
    window.scrollTo(0, 0);
    // Whoever reads by ear or keyboard begins with the new screen, not where the old link was.
    if (former.current !== "") main.current?.focus({ preventScroll: true });
    former.current = path;
  }, [path]);
  const area = place.parts[0] ?? "jobs";
  return (
    <>
      <a class="skip" href={location.hash} onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the content
      </a>
      <div class="frame">
        <nav class="side" aria-label="Screens">
          <a class="brand" href="#/jobs">
            <Mark />
            Retort
          </a>
          <ul>
            {MENU.map(([name, title]) => (
              <li key={name}>
                <a href={to(name)} aria-current={area === name || (name === "jobs" && ["submit", "compare"].includes(area)) ? "page" : undefined}>
                  {title}
                </a>
              </li>
            ))}
          </ul>
          <div class="side-foot">
            <Appearance />
            <a href="docs" class="quiet">
              API documentation
            </a>
            <button type="button" class="plain" onClick={() => void signOut().then(onSignOut)}>
              Sign out
            </button>
          </div>
        </nav>
        <main ref={main} tabIndex={-1}>
          <Opened key={path} path={path} place={place} />
        </main>
      </div>
    </>
  );
}

function Opened({ path, place }: { path: string; place: Place }) {
  const [screen, setScreen] = useState<{ it: Screen } | Error | null>(path === "jobs" ? { it: Jobs } : null);
  const found = SCREENS.find(([pattern]) => pattern.test(path));
  const open = () => {
    setScreen(null);
    found?.[1]().then(
      (it) => setScreen({ it }),
      () => setScreen(new Error("This part of the page could not be loaded. Load the page again.")),
    );
  };
  useEffect(() => {
    if (path !== "jobs") open();
  }, []);
  if (path === "") return null;
  if (found === undefined) {
    return (
      <>
        <Heading title="Nothing here" />
        <Empty title={`The page has no screen “${path}”.`}>
          <p>
            <a href="#/jobs">To the jobs</a>
          </p>
        </Empty>
      </>
    );
  }
  if (screen === null) return <Loading />;
  if (screen instanceof Error) return <Problem error={screen} onRetry={() => location.reload()} />;
  return <screen.it place={place} />;
}

export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" />
      <path d="M9 12.5a6.5 6.5 0 1 0 9.6 5.7c0-1.6 1-3 2.6-3.5L27 13" />
      <circle cx="12" cy="18.6" r="2.2" />
    </svg>
  );
}
