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

# A folder as it may also be written: in parts with an index, another way to name or leave out what transformers knows by itself.
# tensors FOLDER CODE: CODE changes `tensors`, name -> [dtype, shape, bytes]; `parts` > 1 writes so many files and their index
tensors() {
  python3 - "$@" <<'END'
import json, pathlib, struct, sys
folder = pathlib.Path(sys.argv[1])
data = (folder / "model.safetensors").read_bytes()
size = struct.unpack_from("<Q", data)[0]
header = json.loads(data[8:8 + size])
header.pop("__metadata__", None)
tensors = {n: [e["dtype"], e["shape"], data[8 + size + e["data_offsets"][0]:8 + size + e["data_offsets"][1]]] for n, e in header.items()}
parts = 1
exec(sys.argv[2])
def write(path, names):
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        dtype, shape, content = tensors[name]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[name][2] for name in names))
names = sorted(tensors)
if parts == 1:
    write(folder / "model.safetensors", names)
else:
    (folder / "model.safetensors").unlink()
    files = {f"model-{i + 1:05}-of-{parts:05}.safetensors": names[i::parts] for i in range(parts)}
    for file, group in files.items():
        write(folder / file, group)
    index = {"weight_map": {name: file for file, group in files.items() for name in group}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
END
}
# as_before WHAT FOLDER LIKE [OPTIONS...]: FOLDER gives the files that LIKE gives; both bear the same name
as_before() {
  local what=$1 folder=$2 like=$3 file; shift 3
  mkdir -p "$DIR/one/named" "$DIR/two/named"; cp "$folder"/* "$DIR/one/named"; cp "$like"/* "$DIR/two/named"
  if tools/convert-hf "$DIR/one/named" "$DIR/one/out" "$@" >"$DIR/out" 2>&1 && tools/convert-hf "$DIR/two/named" "$DIR/two/out" "$@" >>"$DIR/out" 2>&1 &&
    diff -r "$DIR/one/out" "$DIR/two/out"; then pass "$what"; else fail "$what: $(cat "$DIR/out")"; fi
  rm -rf "$DIR/one" "$DIR/two"
}
copy() { rm -rf "${DIR:?}/$1"; cp -r "$HF/$2" "$DIR/$1"; }
edit() { jq "$2" "$DIR/$1" >"$DIR/edited" && mv "$DIR/edited" "$DIR/$1"; }

copy sharded release; tensors "$DIR/sharded" 'parts = 3'
as_before "three files and an index" "$DIR/sharded" "$HF/release" --one-tile --counts 4 9
rm "$DIR"/sharded/model-00002-of-00003.safetensors
refused "one of them is missing" "model-00002-of-00003" "$DIR/sharded" "$DIR/x" --one-tile
copy f32 llama; tensors "$DIR/f32" 'import array
for t in tensors.values(): t[0], t[2] = "F32", array.array("f", struct.unpack(f"<{len(t[2]) // 2}e", t[2])).tobytes()'
as_before "f32 that f16 holds" "$DIR/f32" "$HF/llama" --dtype f16
copy tied llama; edit tied/config.json '.tie_word_embeddings = true'
tools/convert-hf --dry-run "$DIR/tied" "$DIR/x" >"$DIR/plan" 2>&1; same "a tied output has no matrix of its own" 0 "$(grep -c ' output.weight' "$DIR/plan")"
edit tied/config.json '.tie_word_embeddings = false'; tensors "$DIR/tied" 'del tensors["lm_head.weight"]'
refused "an output that is missing" "no tensor lm_head.weight" "$DIR/tied" "$DIR/x"
copy untold llama; edit untold/config.json 'del(.architectures)'
as_before "an LLM known by its type alone" "$DIR/untold" "$HF/llama"
copy classes dinov2; tensors "$DIR/classes" 'tensors = {"dinov2." + n: t for n, t in tensors.items()}; tensors["classifier.weight"] = ["F16", [1], b"00"]'
as_before "DINOv2 under a classifier" "$DIR/classes" "$HF/dinov2"

# vocab.json and merges.txt, without tokenizer.json, as a release has them.
copy older release
jq .model.vocab "$HF/release/tokenizer.json" >"$DIR/older/vocab.json"
{ echo "#version: 0.2"; jq -r '.model.merges[]' "$HF/release/tokenizer.json"; } >"$DIR/older/merges.txt"
jq '{tokenizer_class: "Qwen2Tokenizer", added_tokens_decoder: (.added_tokens | map({(.id | tostring): {content, special}}) | add)}' \
  "$HF/release/tokenizer.json" >"$DIR/older/tokenizer_config.json"
rm "$DIR/older/tokenizer.json"
as_before "vocab.json and merges.txt" "$DIR/older" "$HF/release" --one-tile --counts 4 9
edit older/tokenizer_config.json '.tokenizer_class = "CLIPTokenizer"'
refused "those of another tokenizer" "CLIPTokenizer" "$DIR/older" "$DIR/x" --one-tile
rm "$DIR/older/vocab.json"; touch "$DIR/older/tokenizer.model"
refused "sentencepiece's model" "sentencepiece" "$DIR/older" "$DIR/x" --one-tile

# token WHAT WORDS JQ: a change of tokenizer.json that is refused
token() { copy token "${4:-llama}"; edit token/tokenizer.json "$3"; refused "$1" "$2" "$DIR/token" "$DIR/x" --one-tile; }
token "text cut by more than the digits" "cuts text" '.pre_tokenizer.pretokenizers |= [{type: "Split", pattern: {Regex: "[A-Z]+"}, behavior: "Isolated", invert: false}] + .'
token "text cut by nothing" "cuts text" '.pre_tokenizer.pretokenizers[1].use_regex = false'
token "a space put in front" "cuts text" '.pre_tokenizer.pretokenizers[1].add_prefix_space = true'
token "another pattern" "cuts text" '.pre_tokenizer.pretokenizers[0].pattern.Regex |= sub("p{L}\\+"; "p{L}*")' release
token "text changed before" "Lowercase" '.normalizer = {type: "Sequence", normalizers: [{type: "NFC"}, {type: "Lowercase"}]}'
token "whole words before merges" "ignore_merges" '.model.ignore_merges = true'
token "ends of words" "end_of_word_suffix" '.model.end_of_word_suffix = "</w>"'
token "another model of words" "Unigram" '.model = {type: "Unigram", vocab: []}'
token "a vocabulary without ChatML" "has no <|im_start|>" '.added_tokens |= map(select(.content != "<|im_start|>"))'
token "a release without its markers" "has no <img>" '.added_tokens |= map(select(.content != "<img>"))' release
token "a token past the vocabulary" "is number 999 of 304" '.added_tokens[0].id = 999'
copy token llama; edit token/tokenizer.json '.added_tokens |= map(if .content | startswith("<|im_") then del(.special) else . end)'
as_before "turns are control tokens whatever the file says" "$DIR/token" "$HF/llama"
copy token llama; echo '{' >"$DIR/token/tokenizer.json"
refused "a damaged file of JSON" "tokenizer.json is damaged" "$DIR/token" "$DIR/x"

# settings WHAT WORDS JQ [FOLDER]: a configuration that is refused
settings() { changed settings "${4:-llama}" "$3"; refused "$1" "$2" "$DIR/settings" "$DIR/x" --one-tile; rm -r "$DIR/settings"; }
settings "RoPE scaled without a name" "scaled RoPE" '.rope_scaling = {factor: 2}'
settings "RoPE scaled as transformers 5 says it" "scaled RoPE" '.rope_parameters = {rope_type: "linear", factor: 2, rope_theta: 10000}'
settings "RoPE of a part of each head" "part of each head" '.partial_rotary_factor = 0.5'
settings "some layers with a sliding window" "sliding window" '.layer_types = ["full_attention", "sliding_attention"]'
settings "quantised weights" "quantised" '.quantization_config = {quant_method: "gptq"}'
settings "heads of another size" "expected" '.head_dim = 16'
settings "another activation" "gelu" '.hidden_act = "gelu"'
settings "a release's LLM of another kind" "InternLM2ForCausalLM" '.llm_config.architectures = ["InternLM2ForCausalLM"]' release
settings "a release's vision model of another kind" "intern_vit_6b" '.vision_config.model_type = "intern_vit_6b"' release
settings "quantised parts" "quantised" '.llm_config.quantization_config = {quant_method: "awq"}' release
# weights WHAT WORDS CODE [FOLDER]: tensors that are refused
weights() { copy weights "${4:-llama}"; tensors "$DIR/weights" "$3"; refused "$1" "$2" "$DIR/weights" "$DIR/x" --one-tile; }
weights "biases in Llama's attention" "a bias in model.layers.0.self_attn.q_proj" 'tensors["model.layers.0.self_attn.q_proj.bias"] = ["F16", [32], bytes(64)]'
weights "norms that such a model has not" "have no place.*q_norm" 'tensors["model.layers.0.self_attn.q_norm.weight"] = ["F16", [8], bytes(16)]'
weights "registers" "registers" 'tensors["embeddings.register_tokens"] = ["F16", [1, 4, 32], bytes(256)]' dinov2
weights "weights of eight bits" "is of type F8_E4M3" 'tensors["model.norm.weight"] = ["F8_E4M3", [32], bytes(32)]'
weights "a weight that is no number" "values up to nan" 'tensors["model.norm.weight"] = ["F16", [32], b"\xff\x7f" * 32]'
weights "a second projector" "have no place.*projector" 'tensors["projector.position"] = ["BF16", [1], bytes(2)]' release
copy weights release; tensors "$DIR/weights" 'tensors["language_model.model.embed_tokens.weight"][2] = b"\x00\x50" * (len(tensors["language_model.model.embed_tokens.weight"][2]) // 2)'
refused "numbers that the wanted type can't hold" "F16 can't hold" "$DIR/weights" "$DIR/x" --one-tile --dtype f16

# A pair's file holds only what differs from transformers' defaults: the activation above all.
copy pair clip; jq '{model_type: "clip", vision_config: (. | del(.hidden_act, .layer_norm_eps, .num_channels, .architectures))}' "$HF/clip/config.json" >"$DIR/pair/config.json"
tensors "$DIR/pair" 'tensors = {"vision_model." + n: t for n, t in tensors.items()} | {"text_model.x": ["F16", [1], b"00"], "visual_projection.weight": ["F16", [1], b"00"], "logit_scale": ["F16", [], b"00"]}'
as_before "a CLIP pair, defaults left out" "$DIR/pair" "$HF/clip"
copy short release; edit short/config.json 'del(.vision_config.hidden_act, .vision_config.layer_norm_eps)'
as_before "SigLIP's defaults left out" "$DIR/short" "$HF/release" --one-tile --counts 4 9
# picture WHAT WORDS JSON: a preprocessor that is refused
picture() { copy picture clip; echo "$3" >"$DIR/picture/preprocessor_config.json"; refused "$1" "$2" "$DIR/picture" "$DIR/x"; }
picture "pictures that are not square" "must be square" '{"size": {"height": 32, "width": 40}}'
picture "pictures of -1..1" "0..1" '{"rescale_factor": 0.00784}'
copy picture clip; echo '{"do_normalize": false}' >"$DIR/picture/preprocessor_config.json"
copy like clip; echo '{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}' >"$DIR/like/preprocessor_config.json"
as_before "pictures without mean and deviation" "$DIR/picture" "$DIR/like"
if tools/convert-hf "$HF/release" "$DIR/x" --one-tile --counts 64 100 70 2>"$DIR/err" || ! grep -q "ascending squares" "$DIR/err"; then fail "counts that are no squares: $(cat "$DIR/err")"; else pass "counts that are no squares"; fi
check "nothing is left of what was refused" test ! -e "$DIR/x"

# Heads of twice the width, every other pair of them empty: RoPE turns the pairs in use as it did, scores are what they were.
copy heads release; edit heads/config.json '.llm_config.head_dim = 16'
tensors "$DIR/heads" 'import array
def spread(rows, factor):  # rows of heads of 8 -> of 16: pair i, i + 4 becomes 2i, 2i + 8
    out = [[0.0] * len(rows[0]) for _ in range(2 * len(rows))]
    for i, row in enumerate(rows):
        out[i // 8 * 16 + 2 * (i % 4) + i % 8 // 4 * 8] = [value * factor for value in row]
    return out
for name, tensor in tensors.items():
    part = name.split(".")[-2]
    if part in ("q_proj", "k_proj", "v_proj", "o_proj") and name.startswith("language_model"):
        values = array.array("f", b"".join(b"\0\0" + tensor[2][i:i + 2] for i in range(0, len(tensor[2]), 2)))
        width = tensor[1][1] if len(tensor[1]) == 2 else 1
        rows = [values[i:i + width] for i in range(0, len(values), width)]
        rows = list(zip(*spread(list(zip(*rows)), 1))) if part == "o_proj" else spread(rows, 2 ** 0.5 if part == "q_proj" else 1)
        tensor[:] = ["F32", [len(rows), len(rows[0])][:len(tensor[1])], array.array("f", [v for row in rows for v in row]).tobytes()]'
check "heads wider than the model's width divided by them" tools/convert-hf "$DIR/heads" "$DIR/wider" --one-tile --counts 4 9
for model in model wider; do
  "$BUILD/tokenflex" caption "$crop" --model "$DIR/$model" --compute f32 --max-new-tokens 12 -o "$DIR/$model.jsonl" 2>"$DIR/$model.log"
done
said() { jq -r '[.image, .caption] | @tsv' "$DIR/$1.jsonl" | sort; }
same "they say the same" "$(said model)" "$(said wider)"
check "which is not nothing" test "$(said wider | cut -f2 | sort -u | wc -l)" -gt 3

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
