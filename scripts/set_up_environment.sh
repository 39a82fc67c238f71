#!/usr/bin/env bash
# Makes .venv, completes it or brings it up to date: `set_up_environment.sh EXTRA`, called by the Makefile in the
# project's folder. An unfinished environment is never used: .venv/.installing exists from the first moment until pip has
# succeeded, .venv/.installed (with the folder's path in it) from then on.
set -euo pipefail

extra=$1
venv=.venv
oldest="(3, 11)"
newest="(3, 13)"

# Of pip's hundreds of lines those that show what it is doing. Errors come on stderr, unchanged.
show_progress() {
  local line
  while IFS= read -r line; do
    case $line in
      *"Downloading "*" MB)"* | *"Downloading "*" GB)"* | *"Using cached "*" MB)"*) echo "  ${line#"${line%%[! ]*}"}" ;;
      "Installing collected packages: nvae_tf") ;;
      "Installing collected packages: "*) echo "  Unpacking; this takes about a minute" ;;
    esac
  done
}

fits() {
  "$1" -c "import ensurepip, sys, venv; sys.exit(not $oldest <= sys.version_info[:2] <= $newest)" 2>/dev/null
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" && echo "$PYTHON" && return
    echo "PYTHON=$PYTHON is not a Python 3.11 to 3.13 with the modules venv and ensurepip." >&2
  else
    for candidate in python3.11 python3 python3.12 python3.13; do
      fits "$candidate" && echo "$candidate" && return
    done
    echo "None of python3.11, python3, python3.12, python3.13 is a Python 3.11 to 3.13 with the modules venv and ensurepip." >&2
  fi
  echo "Install Python 3.11 (on Debian and Ubuntu with python3.11-venv), or name one: make demo PYTHON=/path/to/python3.11" >&2
  return 1
}

made_elsewhere() { [ -e $venv/.installed ] && [ "$(cat $venv/.installed)" != "$PWD" ]; }
works() { $venv/bin/python -m pip --version >/dev/null 2>&1; }

if [ -e $venv ] && { [ -e $venv/.installing ] || made_elsewhere || ! works; }; then
  echo "The environment in $venv is unfinished, moved or broken: making it again."
  rm -rf $venv
fi

if [ -e $venv ]; then
  echo "Bringing $venv up to date with setup.cfg and constraints.txt (extra: $extra)."
  touch $venv/.installing
else
  python=$(find_python)
  echo "Setting up $venv with $("$python" --version): TensorFlow and its companions, about 2 GB; once, one to several minutes."
  mkdir $venv
  touch $venv/.installing
  "$python" -m venv $venv
fi

PYTHONUNBUFFERED=1 $venv/bin/python -m pip install --disable-pip-version-check --timeout 60 --retries 5 \
  --constraint constraints.txt --editable ".[$extra]" | show_progress || {
  echo "Installing the packages failed; pip's reason is above. The next make tries again." >&2
  exit 1
}
# Beside a checkout of the package's name Python would take the folder for the package.
printf '%s\n' "$PWD" >"$(echo $venv/lib/python3*/site-packages)/nvae_tf_checkout.pth"
printf '%s\n' "$PWD" >$venv/.installed
rm $venv/.installing
echo "$venv is ready."
