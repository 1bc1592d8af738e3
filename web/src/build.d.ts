/** Whether the API has exports of model versions; see vite.config.ts. */
declare const HAS_EXPORTS: boolean;
