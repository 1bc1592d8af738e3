// The small parts that all screens are made of.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { ProblemError, Unreachable, type Fault } from "../api/client";
import { fullTime, shortTime } from "./format";
import type { Pages } from "./loading";

export function Time({ at }: { at: string | null | undefined }) {
  if (!at) return <span class="faint">–</span>;
  return (
    <time dateTime={at} title={fullTime(at)}>
      {shortTime(at)}
    </time>
  );
}

const TONES: Record<string, string> = {
  running: "run", starting: "run", validating: "run", pausing: "hold", paused: "hold",
  cancelling: "hold", queued: "wait", pending: "wait", succeeded: "good", ready: "good",
  online: "good", complete: "good", failed: "bad", rejected: "bad", refused: "bad", lost: "bad", incomplete: "hold",
  joined: "run", answered: "good", open: "run", published: "good", left: "hold", revoked: "bad", suspended: "hold", pruned: "wait", cancelled: "wait", stopped: "wait",
};

/** A state in words and colour; a state that is not known here is shown as it is. */
export function State({ of }: { of: string }) {
  return <span class={`state ${TONES[of] ?? "wait"}`}>{of}</span>;
}

export function Progress({ value, label }: { value: number; label: string }) {
  return <progress class="progress" max={1} value={value} aria-label={label} />;
}

/** Text of the server, in which `backticks` stand round code, as in its descriptions and messages. */
export function Told({ text }: { text: string }) {
  return <>{text.split(/`([^`]+)`/).map((part, index) => (index % 2 === 1 ? <code key={index}>{part}</code> : part))}</>;
}

/** What went wrong, in which field, and the way out. */
export function Problem({ error, onRetry }: { error: Error; onRetry?: () => void }) {
  const problem = error instanceof ProblemError ? error.problem : null;
  const faults = problem?.errors ?? [];
  const isAlone = faults.length === 1 && faults[0]?.detail === problem?.detail;
  return (
    <div class="notice bad" role="alert">
      <p class="notice-title">{problem?.title ?? (error instanceof Unreachable ? "No connection" : "Error")}</p>
      <p>
        {isAlone && <code class="pointer">{faults[0]?.pointer}</code>} <Told text={error.message} />
      </p>
      {!isAlone && faults.length > 0 && <Faults faults={faults} />}
      {problem?.allowed && problem.allowed.length > 0 && <p>Possible now: {problem.allowed.join(", ")}.</p>}
      {problem?.uses?.map((use) => (
        <p key={use.kind}>
          Used by {use.count} × {use.kind}: {use.names.join(", ")}
        </p>
      ))}
      {problem?.quota && (
        <p>
          Quota <code>{problem.quota.name}</code>: {problem.quota.used} of {problem.quota.limit} used,{" "}
          {problem.quota.requested} more asked for.
        </p>
      )}
      {problem?.instance && <p class="faint small">Request {problem.instance}</p>}
      {onRetry && (
        <button type="button" onClick={onRetry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Faults({ faults }: { faults: Fault[] }) {
  return (
    <ul class="faults">
      {faults.map((fault) => (
        <li key={fault.pointer + fault.code}>
          {fault.pointer !== "" && <code class="pointer">{fault.pointer}</code>} <Told text={fault.detail} />
        </li>
      ))}
    </ul>
  );
}

export function Notes({ title, lines }: { title: string; lines: (string | JSX.Element)[] }) {
  if (lines.length === 0) return null;
  return (
    <div class="notice hold">
      <p class="notice-title">{title}</p>
      <ul>
        {lines.map((line, index) => (
          <li key={index}>{typeof line === "string" ? <Told text={line} /> : line}</li>
        ))}
      </ul>
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

/** Grey bars where rows will be. */
export function Loading({ rows = 5 }: { rows?: number }) {
  return (
    <div class="skeleton" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, index) => (
        <span key={index} />
      ))}
    </div>
  );
}

export function Heading({ title, children, aside }: { title: string; children?: ComponentChildren; aside?: ComponentChildren }) {
  useEffect(() => {
    document.title = `${title} · Retort`;
  }, [title]);
  return (
    <header class="heading">
      <div>
        <h1 tabIndex={-1}>{title}</h1>
        {children && <div class="under">{children}</div>}
      </div>
      {aside && <div class="actions">{aside}</div>}
    </header>
  );
}

export function Section({ title, children, aside, id }: { title: string; children: ComponentChildren; aside?: ComponentChildren; id?: string }) {
  const own = useId();
  return (
    <section class="section" aria-labelledby={id ?? own}>
      <div class="section-head">
        <h2 id={id ?? own}>{title}</h2>
        {aside}
      </div>
      {children}
    </section>
  );
}

/** A table that scrolls sideways by itself where it does not fit; it can be reached by keyboard. */
export function Table({ caption, children }: { caption: string; children: ComponentChildren }) {
  return (
    <div class="table" role="region" aria-label={caption} tabIndex={0}>
      <table>
        <caption class="hidden">{caption}</caption>
        {children}
      </table>
    </div>
  );
}

/** Facts in two columns. */
export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts
        .filter(([, value]) => value !== null && value !== undefined && value !== "" && !(Array.isArray(value) && value.length === 0))
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

interface FieldProps {
  label: string;
  hint?: string | undefined;
  faults?: string[];
  children: (attributes: { id: string; "aria-describedby": string | undefined; "aria-invalid": boolean }) => JSX.Element;
}

/** A label, its control, a hint, and what is wrong with the value. */
export function Field({ label, hint, faults = [], children }: FieldProps) {
  const id = useId();
  const isWrong = faults.length > 0;
  const described = [hint ? `${id}-hint` : "", isWrong ? `${id}-fault` : ""].filter(Boolean).join(" ");
  return (
    <div class={`field${isWrong ? " wrong" : ""}`}>
      <label for={id}>{label}</label>
      {children({ id, "aria-describedby": described || undefined, "aria-invalid": isWrong })}
      {isWrong && (
        <p class="fault" id={`${id}-fault`}>
          <Told text={faults.join(" ")} />
        </p>
      )}
      {hint && <Hint id={`${id}-hint`} text={hint} />}
    </div>
  );
}

const SHORT_HINT = 120;

/** A hint; of a long one the first sentence, and the rest on demand. */
export function Hint({ id, text }: { id?: string; text: string }) {
  const end = text.slice(20).search(/[.:;] /);
  if (text.length <= SHORT_HINT || end < 0) {
    return (
      <p class="hint" id={id}>
        <Told text={text} />
      </p>
    );
  }
  const cut = end + 21;
  return (
    <details class="hint" id={id}>
      <summary>
        <Told text={text.slice(0, cut).replace(/[:;]$/, "")} />
      </summary>
      <Told text={text.slice(cut).trim()} />
    </details>
  );
}

/** A button whose work is awaited; it cannot be pressed twice meanwhile. */
export function Do({
  work,
  children,
  onError,
  kind = "",
  disabled = false,
  confirm,
}: {
  work: () => Promise<unknown>;
  children: ComponentChildren;
  onError: (error: Error | undefined) => void;
  kind?: string;
  disabled?: boolean;
  confirm?: string;
}) {
  const [isBusy, setBusy] = useState(false);
  const press = async () => {
    if (confirm !== undefined && !window.confirm(confirm)) return;
    setBusy(true);
    onError(undefined);
    try {
      await work();
    } catch (error) {
      onError(error as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <button type="button" class={kind} disabled={isBusy || disabled} aria-busy={isBusy} onClick={press}>
      {children}
    </button>
  );
}

/** Asks for more rows when it comes into view; also a button, for keyboards. */
export function More({ pages }: { pages: Omit<Pages<unknown>, "rows"> }) {
  const { hasMore, isLoadingMore, moreFailed, isStill } = pages;
  const button = useRef<HTMLButtonElement>(null);
  const ask = useRef(pages.more);
  ask.current = pages.more;
  const isWaiting = moreFailed !== undefined;
  useEffect(() => {
    // What has failed in view would fail again at once, and without end: the reader tries again.
    if (button.current === null || isWaiting || isLoadingMore) return;
    let isOver = false;
    // On a busy machine it may be told only after the rows have come that push the button away.
    const seen = new IntersectionObserver(
      (entries) => !isOver && entries.at(-1)?.isIntersecting && ask.current(),
      { rootMargin: "300px" },
    );
    seen.observe(button.current);
    return () => {
      isOver = true;
      seen.disconnect();
    };
  }, [hasMore, isLoadingMore, isWaiting]);
  return (
    <>
      {isStill && (
        <p class="small muted">
          So long a list is not kept up to date.{" "}
          <button type="button" class="link" onClick={pages.reload}>
            Load it again from the top
          </button>
        </p>
      )}
      {moreFailed && <Problem error={moreFailed} onRetry={pages.more} />}
      {hasMore && !moreFailed && (
        <div class="more">
          <button ref={button} type="button" onClick={pages.more} disabled={isLoadingMore}>
            {isLoadingMore ? "Loading…" : "Load more"}
          </button>
        </div>
      )}
    </>
  );
}

/** Text that can be copied, such as an id. */
export function Copy({ text, label }: { text: string; label: string }) {
  const [isDone, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  // There is no clipboard where the page is not served over TLS or from this machine.
  if (!("clipboard" in navigator)) return <code>{text}</code>;
  return (
    <button type="button" class="copy" onClick={copy} title={`Copy ${label}`}>
      <code>{text}</code>
      <span aria-live="polite">{isDone ? " copied" : ""}</span>
    </button>
  );
}

/** A text that takes effect once the reader pauses. */
export function SearchField({ label, hint, value, onDone }: { label: string; hint: string; value: string; onDone: (text: string) => void }) {
  const [text, setText] = useState(value);
  // What came of typing is no reason to write into the field: the reader may have typed on.
  const told = useRef(value);
  useEffect(() => {
    if (value !== told.current) setText(value);
    told.current = value;
  }, [value]);
  useEffect(() => {
    if (text.trim() === value) return;
    const timer = setTimeout(() => {
      told.current = text.trim();
      onDone(told.current);
    }, 350);
    return () => clearTimeout(timer);
  }, [text]);
  return (
    <label>
      <span>{label}</span>
      <input type="search" value={text} placeholder={hint} onInput={(event) => setText(event.currentTarget.value)} />
    </label>
  );
}

/** The rows of a list that is loaded page by page, and what stands there while there are none. */
export function PagedTable<T>({ pages, caption, head, row, empty, many = false }: { pages: Pages<T>; caption: string; head: ComponentChildren; row: (one: T) => ComponentChildren; empty: ComponentChildren; many?: boolean }) {
  const { rows } = pages;
  return (
    <>
      {pages.error && <Problem error={pages.error} onRetry={pages.reload} />}
      {rows === undefined && !pages.error && <Loading />}
      {rows?.length === 0 && empty}
      {rows !== undefined && rows.length > 0 && (
        <>
          <Table caption={caption}>
            <thead>
              <tr>{head}</tr>
            </thead>
            <tbody class={many ? "many" : undefined}>{rows.map(row)}</tbody>
          </Table>
          <More pages={pages} />
        </>
      )}
    </>
  );
}
