// Sign-in: by a key that is typed, or by the link that `retort up` prints, which works once.
import { useEffect, useState } from "preact/hooks";
import { address, ProblemError, send, type Schemas } from "../api/client";
import { remember } from "../api/session";
import { Mark } from "../app";
import { Field, Loading, Problem } from "../ui/parts";

const HOURS = 12;

/** Change the key of a link for one of this tab, and end it: the link has worked once. */
async function useLink(link: string): Promise<void> {
  const expires = new Date(Date.now() + HOURS * 3_600_000).toISOString();
  const body = JSON.stringify({ name: "page in a browser", role: "admin", expires_at: expires });
  const headers = { "Content-Type": "application/json" };
  const made = await send("/v1/api-keys", { method: "POST", body, headers }, link);
  const own = (await made.json()) as Schemas["KeyCreated"];
  const linkId = `key_${link.split("_")[2]}`;
  await send(`/v1/api-keys/${linkId}`, { method: "DELETE" }, own.api_key);
  remember(own.api_key, own.id);
}

export function SignIn({ link, told, onDone }: { link: string | null; told: string | null; onDone: () => void }) {
  const [text, setText] = useState("");
  const [error, setError] = useState<Error | undefined>(undefined);
  const [isBusy, setBusy] = useState(link !== null);
  useEffect(() => {
    document.title = "Sign in · Retort";
    if (link === null) return;
    useLink(link).then(onDone, (failed: Error) => {
      const isUsed = failed instanceof ProblemError && failed.problem.status === 401;
      setError(
        isUsed
          ? new Error("This sign-in link has been used, or is older than 15 minutes. Start `retort up` again for another one, or sign in with the key in client.json of its data folder.")
          : failed,
      );
      setBusy(false);
    });
  }, []);
  const signIn = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      const key = text.trim();
      // A key that may read nothing else may read this.
      await send("/v1/methods?limit=1", {}, key);
      remember(key, null);
      onDone();
    } catch (failed) {
      setError(failed as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <main class="signin">
      <form onSubmit={(event) => void signIn(event)} class="card">
        <h1>
          <Mark /> Retort
        </h1>
        {told !== null && !error && <div class="notice hold" role="status">{told}</div>}
        {error && <Problem error={error} />}
        {isBusy && link !== null ? (
          <Loading rows={2} />
        ) : (
          <>
            <Field
              label="API key"
              hint="Kept by this tab alone, until it is closed. On this machine, `retort up` writes a key to client.json in its data folder."
            >
              {(attributes) => (
                <input
                  {...attributes}
                  type="password"
                  autoComplete="off"
                  spellcheck={false}
                  required
                  placeholder="ak_…"
                  value={text}
                  onInput={(event) => setText(event.currentTarget.value)}
                />
              )}
            </Field>
            <button type="submit" class="primary" disabled={isBusy || text.trim() === ""}>
              {isBusy ? "Signing in…" : "Sign in"}
            </button>
          </>
        )}
        <p class="faint small">{address("").replace(/\/$/, "")}</p>
      </form>
    </main>
  );
}
