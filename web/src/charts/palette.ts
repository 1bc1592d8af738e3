/** Names of the colours of curves and classes in styles.css; the ninth looks like the first. */
export const COLOURS = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"] as const;
