# pip install into .venv, with its many lines in a log, and the end of the log when it fails.
set -eu
log=.venv/install.log
if ! .venv/bin/python -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1; then
    tail -n 25 "$log" >&2
    echo "pip could not install $*; the whole log is in $log" >&2
    exit 1
fi
