#!/bin/sh
# Find Chromium for the tests of the page, or install it as root on Debian and Ubuntu. Where it can
# not be had, say so and fail: the tests that need it fail then too, and say what to install.
set -u
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$name" >/dev/null 2>&1 && exit 0
done
libraries=
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  # What Chromium is linked with is no part of what Playwright loads.
  libraries=--with-deps
  echo "browser: installing chromium"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >.venv/browser.log 2>&1 && exit 0
fi
"${1:-.venv/bin/playwright}" install $libraries chromium >>.venv/browser.log 2>&1 && exit 0
echo "browser: no Chromium here, and none could be installed (.venv/browser.log says why)" >&2
exit 1
