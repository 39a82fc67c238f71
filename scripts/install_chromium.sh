#!/usr/bin/env bash
# Installs Debian's Chromium, for the tests that look at pages in a browser: that of train.report, and the explorer. Does
# nothing where one is there; says what to do where it can't be installed.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done

if ! command -v apt-get >/dev/null; then
  echo "Chromium is missing, and there is no apt-get to install it with: install it in your system's way." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "Chromium is missing: install it as root, apt-get install chromium." >&2; exit 1; }
  as_root=(sudo --non-interactive)
fi

echo "Installing Chromium with apt-get, for the tests of pages (about 500 MB on the disk, once)."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes "$@" >>"$log" 2>&1; }
# A machine that has never asked does not know the packages yet.
if ! { apt install chromium || { apt update && apt install chromium; }; }; then
  tail -n 20 "$log" >&2
  echo "Installing Chromium failed; apt-get's reason stands above." >&2
  exit 1
fi
