// The key of this tab. Session storage: it survives a reload, and ends with the tab.

const KEY = "retort.key";
const CREATED = "retort.key_id";

/** Return the API key that this tab is signed in with, or null. */
export function key(): string | null {
  return sessionStorage.getItem(KEY);
}

/** Return the id of the key that this page has made for itself, or null for one that was given. */
export function ownKeyId(): string | null {
  return sessionStorage.getItem(CREATED);
}

/** Sign this tab in; `ownId` is the id of a key that the page may revoke when it signs out. */
export function remember(text: string, ownId: string | null): void {
  sessionStorage.setItem(KEY, text);
  if (ownId === null) sessionStorage.removeItem(CREATED);
  else sessionStorage.setItem(CREATED, ownId);
}

/** Sign this tab out. */
export function forget(): void {
  sessionStorage.removeItem(KEY);
  sessionStorage.removeItem(CREATED);
}

/** Return the key of a sign-in link (`#sign-in=KEY`), and take it out of the address at once. */
export function takeFromAddress(): string | null {
  const match = /^#sign-in=(.*)$/.exec(location.hash);
  if (match === null) return null;
  history.replaceState(null, "", `${location.pathname}${location.search}#/jobs`);
  return match[1] ?? null;
}
