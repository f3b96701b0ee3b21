#!/bin/sh
# made by autofit for box: embed, helper, chat
pids=
trap 'kill $pids 2>/dev/null' EXIT
trap 'exit 1' INT TERM
# embed on GPU0, GPU1, port 8000
vllm serve /autofit/tests/data/vllm/configs/qwen3-0.6b --max-model-len 1024 --max-num-seqs 256 --max-num-batched-tokens 2048 --gpu-memory-utilization 0.6523 --dtype bfloat16 -tp 2 --port 8000 &
p0=$!; pids="$pids $!"
# embed measures free memory while it starts: helper waits until it answers
until curl -fsS -o /dev/null http://127.0.0.1:8000/health 2>/dev/null; do kill -0 $p0 || exit 1; sleep 1; done
# helper on GPU1, port 9000
vllm serve /autofit/tests/data/vllm/configs/qwen3-0.6b --device-ids 1 --max-model-len 512 --max-num-seqs 256 --max-num-batched-tokens 2048 --gpu-memory-utilization 0.2508 --dtype bfloat16 --port 9000 &
p1=$!; pids="$pids $!"
# chat on GPU0, port 8080
llama-server -m /autofit/autofit/_models/tiny.gguf -c 1024 -dev CUDA0 -ngl 3 -fa on -np 1 -fit off --port 8080 &
p2=$!; pids="$pids $!"
# Batch_1, after the end of embed:
# vllm serve /autofit/tests/data/vllm/configs/qwen3-0.6b --max-model-len 2048 --max-num-seqs 256 --max-num-batched-tokens 2048 --gpu-memory-utilization 0.9412 --dtype bfloat16 --port 8001
# other, after the end of chat:
# llama-server -m /autofit/autofit/_models/tiny.gguf --alias 'it'"'"'s $HOME 100%' -c 2048 -dev CUDA0 -ngl 3 -fa on -ub 2048 -np 1 -fit off --port 8081
wait
