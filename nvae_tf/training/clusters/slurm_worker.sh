#!/usr/bin/env bash
# One worker of slurm.sbatch: makes TF_CONFIG out of srun's environment variables, and runs nvae-train with its flags.
# Exit code 0 when the run is done and when it was asked to stop, with a checkpoint.
set -euo pipefail

tasks_per_node=$((SLURM_NTASKS / SLURM_STEP_NUM_NODES))
if [ "$SLURM_PROCID" -ne $((SLURM_NODEID * tasks_per_node + SLURM_LOCALID)) ] ||
  [ "$SLURM_NTASKS" -ne $((SLURM_STEP_NUM_NODES * tasks_per_node)) ]; then
  echo "error: task $SLURM_PROCID is number $SLURM_LOCALID of node $SLURM_NODEID: the tasks must be in blocks, with" \
    "as many on each node; give --ntasks-per-node, and --distribution=block to srun" >&2
  exit 2
fi

# All tasks find the same ports, and two jobs on a node hardly ever do; below those that Linux gives to connections.
first_port=$((20000 + SLURM_JOB_ID % 700 * 16))
nodes=$(scontrol show hostnames "$SLURM_STEP_NODELIST")
workers=""
for node in $nodes; do
  for ((task = 0; task < tasks_per_node; task++)); do
    workers+="${workers:+, }\"$node:$((first_port + task))\""
  done
done
export TF_CONFIG="{\"cluster\": {\"worker\": [$workers]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"

# In the background, because bash would hold the signal back until a program in the foreground ends.
python -m nvae_tf.train.main "$@" &
worker=$!
trap 'kill -TERM "$worker" 2>/dev/null || true' TERM
while true; do
  code=0
  wait "$worker" || code=$?
  kill -0 "$worker" 2>/dev/null || break
done
# A stop that was asked for is no failure: srun --kill-on-bad-exit would kill the workers that are still saving.
case "$code" in
  130 | 143) exit 0 ;;
  *) exit "$code" ;;
esac
