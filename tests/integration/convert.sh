#!/usr/bin/env bash
# tools/convert-hf from outside: a converted release captions, what it can't run is refused with a reason, a dry run of
# Ristretto-3B's shapes. In: the small models of tests/golden/data/hf. Out: one check a promise.
. "$(dirname "$0")/lib.sh"
HF=tests/golden/data/hf

refused() { # what, words of the error, arguments...
  local what=$1 words=$2; shift 2
  if tools/convert-hf "$@" >"$DIR/out" 2>"$DIR/err"; then fail "$what: accepted"; return; fi
  if grep -q "^convert-hf: .*$words" "$DIR/err" && [ "$(wc -l <"$DIR/err")" = 1 ]; then pass "$what"; else fail "$what: $(cat "$DIR/err")"; fi
}
# changed NAME FOLDER JQ: a copy of a folder with another configuration
changed() { cp -r "$HF/$2" "$DIR/$1"; jq "$3" "$HF/$2/config.json" >"$DIR/$1/config.json"; }

check "a release becomes a model folder" tools/convert-hf "$HF/release" "$DIR/model" --one-tile --counts 4 9
crop=$DIR/photos; mkdir "$crop"; cp examples/*.jpg "$crop"
"$BUILD/tokenflex" caption "$crop" --model "$DIR/model" --max-new-tokens 5 -o "$DIR/captions.jsonl" 2>"$DIR/caption.log"
same "it captions every photo" "$(ls "$crop" | wc -l)" "$(jq -r '.vision_tokens.assigned' "$DIR/captions.jsonl" 2>/dev/null | grep -c '^9$')"

refused "tiles are refused unless one will do" "up to 6 tiles" "$HF/release" "$DIR/x"
refused "a folder without a configuration" "no config.json" "$DIR" "$DIR/x"
changed bert llama '.architectures = ["BertModel"] | .model_type = "bert"'
refused "another architecture" "bert" "$DIR/bert" "$DIR/x"
changed scaled llama '.rope_scaling = {"rope_type": "yarn"} | del(.rope_parameters)'
refused "scaled RoPE" "scaled RoPE" "$DIR/scaled" "$DIR/x"
changed wide llama '.hidden_size = 64'
refused "shapes that don't fit the configuration" "expected" "$DIR/wide" "$DIR/x"
changed deep dinov2 '.num_hidden_layers = 3'
refused "a layer that is missing" "no tensor encoder.layer.2" "$DIR/deep" "$DIR/x"
cp -r "$HF/llama" "$DIR/cut"; truncate -s -100 "$DIR/cut/model.safetensors"
refused "a file that ends early" "ends before" "$DIR/cut" "$DIR/x"
cp -r "$HF/llama" "$DIR/noise"; head -c 64 /dev/urandom >"$DIR/noise/model.safetensors"
refused "a file that is none" "not a safetensors file\|damaged" "$DIR/noise" "$DIR/x"
cp -r "$HF/llama" "$DIR/words"; jq '.model.byte_fallback = true' "$HF/llama/tokenizer.json" >"$DIR/words/tokenizer.json"
refused "a tokenizer of another kind" "byte_fallback" "$DIR/words" "$DIR/x"
refused "two vision models" "already" "$HF/dinov2" "$HF/clip" "$DIR/x"
check "nothing half-made is left" test ! -e "$DIR/x"

# The published full-size model: SigLIP so400m/14 at 384 pixels, Qwen2 of 3 billion weights. Headers alone.
big=$DIR/ristretto; mkdir "$big"; cp "$HF/release/tokenizer.json" "$big"
jq '.vision_config |= (.hidden_size = 1152 | .intermediate_size = 4304 | .num_hidden_layers = 27 | .num_attention_heads = 16
      | .image_size = 384 | .patch_size = 14)
    | .llm_config |= (.hidden_size = 2048 | .intermediate_size = 11008 | .num_hidden_layers = 36 | .num_attention_heads = 16
      | .num_key_value_heads = 2 | .vocab_size = 151936 | .max_position_embeddings = 32768 | .tie_word_embeddings = true)' \
  "$HF/release/config.json" >"$big/config.json"
jq -nc '
  def linear($n; $out; $in): [[$n + ".weight", [$out, $in]], [$n + ".bias", [$out]]];
  def norm($n; $w): [[$n + ".weight", [$w]], [$n + ".bias", [$w]]];
  ("vision_model.vision_model.") as $v | ("language_model.model.") as $l |
  [[$v + "embeddings.patch_embedding.weight", [1152, 3, 14, 14]], [$v + "embeddings.patch_embedding.bias", [1152]],
   [$v + "embeddings.position_embedding.weight", [729, 1152]]]
  + norm($v + "post_layernorm"; 1152)
  + [range(27) | ($v + "encoder.layers.\(.).") as $b | norm($b + "layer_norm1"; 1152)[], norm($b + "layer_norm2"; 1152)[],
     (("q", "k", "v", "out") | linear($b + "self_attn.\(.)_proj"; 1152; 1152)[]),
     linear($b + "mlp.fc1"; 4304; 1152)[], linear($b + "mlp.fc2"; 1152; 4304)[]]
  + [[$l + "embed_tokens.weight", [151936, 2048]], [$l + "norm.weight", [2048]]]
  + [range(36) | ($l + "layers.\(.).") as $b | [$b + "input_layernorm.weight", [2048]],
     [$b + "post_attention_layernorm.weight", [2048]], linear($b + "self_attn.q_proj"; 2048; 2048)[],
     linear($b + "self_attn.k_proj"; 256; 2048)[], linear($b + "self_attn.v_proj"; 256; 2048)[],
     [$b + "self_attn.o_proj.weight", [2048, 2048]], [$b + "mlp.gate_proj.weight", [11008, 2048]],
     [$b + "mlp.up_proj.weight", [11008, 2048]], [$b + "mlp.down_proj.weight", [2048, 11008]]]
  + norm("projector.mlp.layernorm"; 1152) + linear("projector.mlp.f1"; 3456; 1152)
  + linear("projector.mlp.f2"; 3456; 1152) + linear("projector.mlp.g"; 2048; 3456)
  | reduce .[] as [$name, $shape] ({at: 0, out: {}}; (reduce $shape[] as $n (2; . * $n)) as $size
      | .out[$name] = {dtype: "BF16", shape: $shape, data_offsets: [.at, .at + $size]} | .at += $size) | .out' >"$DIR/header"
size=$(wc -c <"$DIR/header")
{ for shift in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %02x $((size >> shift & 255)))"; done; cat "$DIR/header"; } >"$big/model.safetensors"
tools/convert-hf --dry-run --one-tile "$big" "$DIR/x" >"$DIR/plan" 2>&1
same "the full-size release: its vision model" "1" "$(grep -cE '^vision.gguf: 437 tensors, 413\.0 M weights' "$DIR/plan")"
same "its LLM, and the memory it needs" "1" "$(grep -cE '^llm.gguf: 434 tensors, 3085\.9 M weights, 6\.17 GB in the file; weights in memory: 12\.34 GB f32, 6\.17 GB bf16, 3\.09 GB int8' "$DIR/plan")"
same "its projector" "1" "$(grep -c 'projector.down.weight \[2048, 3456\] BF16' "$DIR/plan")"
check "a dry run writes nothing" test ! -e "$DIR/x"
