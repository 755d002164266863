#!/bin/bash
# Stands in for Python on a host (tests/support/fake_host.py), before and inside of the virtual environment.
case $2 in
  venv) mkdir -p venv/bin && ln -s "$0" venv/bin/python ;;
  pip) echo "$@" >>"$FAKE_HOST/installed" ;;
  *)
    echo "$PYTHONPATH $SWITCH_TF_PROCESS $SWITCH_TF_PROCESSES $*" >>"$FAKE_HOST/trained"
    exec "$FAKE_HOST/training" "$@"
    ;;
esac
