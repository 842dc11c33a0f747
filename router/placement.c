/* Which encoder and which LLM a job goes to: the least loaded pair with room.
 * In: windows and what is outstanding. Out: indices of one encoder and one LLM of the same pair, or none.
 * One pass over each tier: the best LLM of every pair first, then the best encoder whose pair has one. */
#include "router/placement.h"

/* Share of the window in use; compared, never shown. */
static double load(const tf_slot *slot) {
  double jobs = slot->jobs_max ? (double)slot->jobs_out / slot->jobs_max : 1e9;
  double kv = slot->kv_max ? (double)slot->kv_out / slot->kv_max : 0;
  return jobs > kv ? jobs : kv;
}

bool tf_place_may_take(const tf_slot *slot, const tf_place_request *request) {
  return slot->usable && slot->jobs_max > 0 && slot->pair < TF_PAIRS_MAX && (request->pairs >> slot->pair & 1);
}

/* An LLM with nothing outstanding takes a job of any size: only it can say that a prompt is too long. */
static bool has_memory(const tf_slot *slot, uint32_t kv_tokens) {
  if (slot->jobs_out == 0 || slot->kv_max == 0) return true;
  return slot->kv_out <= slot->kv_max && kv_tokens <= slot->kv_max - slot->kv_out;
}

static bool has_room(const tf_slot *slot, uint32_t kv_tokens) {
  return slot->jobs_out < slot->jobs_max && has_memory(slot, kv_tokens);
}

typedef bool (*fit)(const tf_slot *slot, const tf_place_request *request);

static bool fits(const tf_slot *slot, const tf_place_request *request) {
  if (!tf_place_may_take(slot, request) || slot->held) return false;
  return request->alone ? slot->jobs_out == 0 : has_room(slot, request->kv_tokens);
}

/* A worker kept for one suspect is not taken from it by the next, or neither would ever find it idle. */
static bool may_hold(const tf_slot *slot, const tf_place_request *request) {
  return tf_place_may_take(slot, request) && !slot->held;
}

/* Half of a tier is kept at most (of one worker: that one), so that the others' jobs go on meanwhile. */
static bool may_keep_one_more(const tf_slot *slots, size_t count) {
  size_t usable = 0, kept = 0;
  for (size_t i = 0; i < count; i++) {
    usable += slots[i].usable;
    kept += slots[i].usable && slots[i].held;
  }
  return kept < (usable + 1) / 2;
}

/* Best encoder and LLM among those that fit. */
static tf_placement best(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                         const tf_place_request *request, fit fn) {
  tf_placement out = {false, 0, 0};
  bool pair_has_llm[TF_PAIRS_MAX] = {false};
  size_t pair_llm[TF_PAIRS_MAX] = {0};
  if (request->alone && (!may_keep_one_more(encoders, encoder_count) || !may_keep_one_more(llms, llm_count)))
    return out;
  for (size_t i = 0; i < llm_count; i++) {
    size_t at = (request->turn + i) % llm_count;
    const tf_slot *slot = &llms[at];
    if (!fn(slot, request)) continue;
    if (pair_has_llm[slot->pair] && load(&llms[pair_llm[slot->pair]]) <= load(slot)) continue;
    pair_has_llm[slot->pair] = true;
    pair_llm[slot->pair] = at;
  }
  for (size_t i = 0; i < encoder_count; i++) {
    size_t at = (request->turn + i) % encoder_count;
    const tf_slot *slot = &encoders[at];
    if (!fn(slot, request) || !pair_has_llm[slot->pair]) continue;
    if (out.found && load(&encoders[out.encoder]) <= load(slot)) continue;
    out = (tf_placement){true, at, pair_llm[slot->pair]};
  }
  return out;
}

tf_placement tf_place(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                      const tf_place_request *request) {
  return best(encoders, encoder_count, llms, llm_count, request, fits);
}

tf_placement tf_place_hold(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                           const tf_place_request *request) {
  return best(encoders, encoder_count, llms, llm_count, request, may_hold);
}

bool tf_place_reserve(const tf_slot *llms, size_t llm_count, const tf_place_request *request, size_t *llm) {
  bool found = false;
  uint32_t most = 0, largest = 0;
  for (size_t i = 0; i < llm_count; i++)
    if (tf_place_may_take(&llms[i], request) && llms[i].kv_max > largest) largest = llms[i].kv_max;
  uint32_t enough = request->kv_tokens < largest ? request->kv_tokens : largest;
  for (size_t i = 0; i < llm_count; i++) {
    if (!may_hold(&llms[i], request)) continue;
    if (has_memory(&llms[i], request->kv_tokens)) return false;
    if (llms[i].kv_max < enough) continue; /* a smaller one, empty at last, would refuse the job for good */
    uint32_t kv_free = llms[i].kv_out < llms[i].kv_max ? llms[i].kv_max - llms[i].kv_out : 0;
    if (found && kv_free <= most) continue;
    found = true;
    most = kv_free;
    *llm = i;
  }
  return found && may_keep_one_more(llms, llm_count);
}

/* Saturating, so that windows of any size add up to something sane. */
static void add(uint32_t *sum, uint32_t value) {
  *sum = value > UINT32_MAX - *sum ? UINT32_MAX : *sum + value;
}

static uint32_t room_of(const tf_slot *slot, uint32_t kv_tokens_each) {
  if (!slot->usable || slot->held || slot->jobs_out >= slot->jobs_max) return 0;
  uint32_t jobs = slot->jobs_max - slot->jobs_out;
  if (slot->kv_max == 0 || kv_tokens_each == 0) return jobs;
  uint32_t kv_free = slot->kv_out < slot->kv_max ? slot->kv_max - slot->kv_out : 0;
  uint32_t by_kv = kv_free / kv_tokens_each;
  if (by_kv == 0 && slot->jobs_out == 0) by_kv = 1;
  return jobs < by_kv ? jobs : by_kv;
}

uint32_t tf_place_room(const tf_slot *encoders, size_t encoder_count, const tf_slot *llms, size_t llm_count,
                       uint32_t kv_tokens_each) {
  uint32_t encode[TF_PAIRS_MAX] = {0}, decode[TF_PAIRS_MAX] = {0}, total = 0;
  for (size_t i = 0; i < encoder_count; i++)
    if (encoders[i].pair < TF_PAIRS_MAX) add(&encode[encoders[i].pair], room_of(&encoders[i], 0));
  for (size_t i = 0; i < llm_count; i++)
    if (llms[i].pair < TF_PAIRS_MAX) add(&decode[llms[i].pair], room_of(&llms[i], kv_tokens_each));
  for (int pair = 0; pair < TF_PAIRS_MAX; pair++)
    add(&total, encode[pair] < decode[pair] ? encode[pair] : decode[pair]);
  return total;
}
