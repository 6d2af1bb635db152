#!/bin/bash
# go.sh NAME TASK SEED STEPS KW FLAGS
cd /tmp/t/src; export PYTHONPATH=/tmp/t/src OMP_NUM_THREADS=1 MUJOCO_GL=disabled
/opt/venv/bin/python /tmp/t/trial.py "$1" "$2" "$3" "$4" "$5" "$6" >> /tmp/l/trials2.log 2>/tmp/l/err.$1.$2.$3
