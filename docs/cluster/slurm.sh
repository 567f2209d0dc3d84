#!/bin/bash
# Quantize one model on eight nodes: sbatch slurm.sh.  MODEL and the output lie on a file system that all nodes see.
#SBATCH --job-name=llmconv
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#SBATCH --requeue

MODEL=${MODEL:-/shared/models/DeepSeek-V3}
OUTPUT=${OUTPUT:-/shared/models/DeepSeek-V3-Q4_K_M.gguf}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1

# A run that was cut off goes on from its journal when the job is queued again, with another number of nodes too.
srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 1 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
    -m llmconv quantize "$MODEL" -t Q4_K_M -o "$OUTPUT" -j "$SLURM_CPUS_PER_TASK" --resumable
