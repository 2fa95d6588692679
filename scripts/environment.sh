# Sourced by quickstart and test: goes to the root of the checkout and makes .venv with the requirements given.
# Usage: source environment.sh; make_environment requirements.txt

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3 python; do
    # Run it: a shim of a version manager may be found and still not work.
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

make_environment() {
  local requirements=$1 python stamp wanted
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || fail "no Python 3.11 or newer with the venv module was found. Install one (for example" \
      "'apt-get install python3.11-venv') or name it: PYTHON=/path/to/python $0"
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv || {
      rm -rf .venv # half of one would be taken for a whole one the next time
      fail ".venv could not be made with $python; is its venv module installed?"
    }
  fi
  stamp=.venv/installed-$requirements
  wanted=$(cat requirements*.txt | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing $requirements (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
      fail "the packages of $requirements could not be installed: see pip's message above. Without a network, install" \
        "them into .venv from a folder of wheels (pip install --no-index --find-links DIR -r $requirements) and run $0 again."
    echo "$wanted" >"$stamp"
  fi
}
