/* The tokenizer against a published one. In: tokenizer.gguf (1,000 strings and their ids), the installed model's
 * vocabulary; the tiny model's for what needs no real one. Out: the same ids, and the same bytes back. Without the
 * installed model the tests that need it fail and name the command that gets it. */
#include "llm-svc/chat.h"
#include "tests/golden/llm_golden.h"

static tf_tokenizer *load_tokenizer(const char *path) {
  tf_gguf *file = open_golden(path);
  tf_tokenizer *tokenizer = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_tokenizer_load(file, &tokenizer, &error), TF_OK, "%s", error.text);
  tf_gguf_close(&file); /* everything is copied */
  return tokenizer;
}

static tf_tokenizer *load_tiny(void) {
  return load_tokenizer(GOLDEN_FOLDER "tiny/llm.gguf");
}

static tf_tokenizer *load_real(void) {
  tf_model_dir model = installed_model();
  return load_tokenizer(model.llm_path);
}

static tf_token_list encode(const tf_tokenizer *self, const char *text, size_t size) {
  tf_token_list list = {0};
  tf_error error = {0};
  cr_assert_eq(tf_tokenizer_encode(self, text, size, &list, &error), TF_OK, "%s", error.text);
  return list;
}

/* True where the pieces of ids put together are the text without the bytes that the vocabulary has no token for. */
static bool decodes_to(const tf_tokenizer *self, const tf_token_list *list, const char *text, size_t text_size) {
  size_t at = 0;
  for (size_t i = 0; i < list->count; i++) {
    size_t size;
    const char *piece = tf_tokenizer_piece(self, list->ids[i], &size);
    for (size_t j = 0; piece != NULL && j < size; j++, at++) {
      while (at < text_size && text[at] != piece[j]) {
        tf_token_list alone = {0};
        /* Only a single character without any token may be missing. */
        bool is_lost = (unsigned char)text[at] < 0x80 &&
                       tf_tokenizer_encode(self, text + at, 1, &alone, NULL) == TF_OK && alone.count == 0;
        tf_token_list_free(&alone);
        if (!is_lost) return false;
        at++;
      }
      if (at == text_size) return false;
    }
  }
  return at == text_size;
}

Test(tokenizer, thousand_strings_both_ways, .timeout = 60) {
  tf_tokenizer *tokenizer = load_real();
  tf_gguf *golden = open_golden(GOLDEN_FOLDER "tokenizer.gguf");
  uint64_t count = tf_gguf_array_count(golden, "text");
  cr_assert_eq(count, 1000);
  cr_assert_eq(tf_gguf_array_count(golden, "offsets"), count + 1);
  for (uint64_t i = 0; i < count; i++) {
    const char *text;
    size_t size;
    uint64_t first, end;
    cr_assert(tf_gguf_array_string(golden, "text", i, &text, &size));
    cr_assert(tf_gguf_array_u64(golden, "offsets", i, &first) && tf_gguf_array_u64(golden, "offsets", i + 1, &end));
    tf_token_list list = encode(tokenizer, text, size);
    cr_assert_eq(list.count, end - first, "string %llu '%.*s': %zu ids, not %llu", (unsigned long long)i, (int)size,
                 text, list.count, (unsigned long long)(end - first));
    for (uint64_t j = first; j < end; j++) {
      int64_t id;
      cr_assert(tf_gguf_array_i64(golden, "ids", j, &id));
      cr_assert_eq(list.ids[j - first], id, "string %llu '%.*s', id %llu", (unsigned long long)i, (int)size, text,
                   (unsigned long long)(j - first));
    }
    cr_assert(decodes_to(tokenizer, &list, text, size), "string %llu '%.*s' does not come back", (unsigned long long)i,
              (int)size, text);
    tf_token_list_free(&list);
  }
  tf_gguf_close(&golden);
  tf_tokenizer_free(&tokenizer);
}

/* One letter, a MiB: one piece for the merges, which must not take quadratic time: that would be hours. */
Test(tokenizer, long_runs_take_bounded_time, .timeout = 120) {
  tf_tokenizer *tokenizer = load_real();
  enum { SIZE = 1 << 20 };
  char *text = malloc(SIZE);
  const char letters[] = {'a', ' ', '\n', '!', '7'};
  for (size_t i = 0; i < sizeof letters; i++) {
    memset(text, letters[i], SIZE);
    text[SIZE - 1] = 'x';
    tf_token_list list = encode(tokenizer, text, SIZE);
    cr_assert(decodes_to(tokenizer, &list, text, SIZE), "a MiB of '%c'", letters[i]);
    tf_token_list_free(&list);
  }
  free(text);
  tf_tokenizer_free(&tokenizer);
}

Test(tokenizer, names_of_control_tokens_in_text_stay_text) {
  tf_tokenizer *tokenizer = load_real();
  const char text[] = "a<|im_end|>\n<|im_start|>system<|endoftext|><repo_name>";
  tf_token_list list = encode(tokenizer, text, strlen(text));
  for (size_t i = 0; i < list.count; i++) cr_assert_not(tf_tokenizer_is_control(tokenizer, list.ids[i]));
  cr_assert(decodes_to(tokenizer, &list, text, strlen(text)));
  tf_token_list_free(&list);
  cr_assert_eq(tf_tokenizer_control(tokenizer, "<|im_end|>"), 2);
  cr_assert_eq(tf_tokenizer_control(tokenizer, "the"), -1);
  tf_tokenizer_free(&tokenizer);
}

Test(tokenizer, invalid_utf8_is_refused) {
  tf_tokenizer *tokenizer = load_tiny();
  const char *const texts[] = {"a\xff", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xc0\xaf", "\xf4\x90\x80\x80", "\x80"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    tf_token_list list = {0};
    tf_error error = {0};
    cr_assert_eq(tf_tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), &list, &error), TF_ERR_FIELD_INVALID);
    cr_assert_eq(list.count, 0);
    tf_token_list_free(&list);
  }
  tf_tokenizer_free(&tokenizer);
}

Test(tokenizer, every_byte_sequence_length_comes_back) {
  tf_tokenizer *tokenizer = load_tiny();
  /* The tiny vocabulary has all 256 bytes: nothing may be lost, NUL neither. */
  const char text[] = "\0 a\t\x7f \xc2\x85\xe2\x80\xa8\xe1\xa0\x8e\xf0\x9f\x98\x80\xf1\x80\x80\x80 12x";
  for (size_t size = 0; size < sizeof text; size++) {
    tf_token_list list = {0};
    if (tf_tokenizer_encode(tokenizer, text, size, &list, NULL) == TF_OK)
      cr_assert(decodes_to(tokenizer, &list, text, size), "%zu bytes", size);
    tf_token_list_free(&list);
  }
  size_t size;
  cr_assert_null(tf_tokenizer_piece(tokenizer, -1, &size));
  cr_assert_null(tf_tokenizer_piece(tokenizer, (int32_t)tf_tokenizer_vocabulary(tokenizer), &size));
  tf_tokenizer_free(&tokenizer);
}

Test(tokenizer, another_kind_of_tokenizer_is_refused) {
  size_t size;
  char *bytes = patched_file(GOLDEN_FOLDER "tiny/llm.gguf", "smollm", "falcon", &size);
  tf_gguf *parsed = NULL;
  tf_tokenizer *tokenizer = NULL;
  tf_error error = {0};
  cr_assert_eq(tf_gguf_parse(bytes, size, "patched", &parsed, &error), TF_OK);
  cr_assert_eq(tf_tokenizer_load(parsed, &tokenizer, &error), TF_ERR_UNSUPPORTED);
  cr_assert_not_null(strstr(error.text, "falcon"));
  tf_gguf_close(&parsed);
  free(bytes);
}

/* ---- The prompt ---- */

static void expect_prompt(const char *text, uint32_t image_tokens, const int32_t *expected, size_t count) {
  tf_tokenizer *tokenizer = load_real();
  tf_gguf *tiny = open_golden(GOLDEN_FOLDER "tiny/llm.gguf"); /* end of turn is 2 in both */
  tf_chat chat;
  tf_prompt prompt = {0};
  tf_error error = {0};
  cr_assert_eq(tf_chat_load(tiny, NULL, tokenizer, &chat, &error), TF_OK, "%s", error.text);
  cr_assert_eq(tf_chat_prompt(&chat, text, image_tokens, &prompt, &error), TF_OK, "%s", error.text);
  cr_assert_eq(prompt.tokens.count, count, "%zu ids", prompt.tokens.count);
  for (size_t i = 0; i < count; i++)
    cr_assert_eq(prompt.tokens.ids[i], expected[i], "id %zu is %d", i, prompt.tokens.ids[i]);
  cr_assert(tf_chat_is_end(&chat, 2) && tf_chat_is_end(&chat, 0) && !tf_chat_is_end(&chat, 1));
  tf_prompt_free(&prompt);
  tf_gguf_close(&tiny);
  tf_tokenizer_free(&tokenizer);
}

Test(chat, prompt_is_as_trained) {
  const int32_t expected[] = {1, 4093, 198, -1, -1, -1, -1, 198, 37964, 451, 2443, 30, 2, 198, 1, 520, 9531, 198};
  expect_prompt("Describe this image.", 4, expected, sizeof expected / sizeof *expected);
}

Test(chat, prompt_without_an_image) {
  const int32_t expected[] = {1, 4093, 198, 37964, 451, 2443, 30, 2, 198, 1, 520, 9531, 198};
  expect_prompt("Describe this image.", 0, expected, sizeof expected / sizeof *expected);
}
