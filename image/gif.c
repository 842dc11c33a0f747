/* GIF decoding through giflib. In: the bytes of one file in memory, limits. Out: RGB rows, transparency over white.
 * Only the first frame is read, line by line, onto a canvas that grows to hold it, as in Pillow.
 * giflib neither aborts nor prints. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <gif_lib.h>

#include "image/formats.h"

enum {
  LZW_PIXELS_PER_BYTE_MAX = 3000, /* a code of 12 bits stands for 4094 pixels at most */
  BLOCKS_MAX = 100000             /* extensions and their parts before the first frame */
};

typedef struct gif_decoder {
  const uint8_t *data;
  size_t size, at;
  bool ended;      /* giflib asked for bytes past the end */
  int transparent; /* palette index, or NO_TRANSPARENT_COLOR */
  GifFileType *gif;
  tf_error *error;
} gif_decoder;

static int on_read(GifFileType *gif, GifByteType *out, int count) {
  gif_decoder *self = gif->UserData;
  size_t rest = self->size - self->at, taken = count < 0 ? 0 : (size_t)count;
  if (taken > rest) {
    taken = rest;
    self->ended = true;
  }
  memcpy(out, self->data + self->at, taken);
  self->at += taken;
  return (int)taken;
}

static tf_code fail_giflib(const gif_decoder *self, int number) {
  const char *text = GifErrorString(number);
  if (number == D_GIF_ERR_NOT_ENOUGH_MEM) return tf_fail(self->error, TF_ERR_OUT_OF_MEMORY, "no memory to decode GIF");
  if (self->ended || number == D_GIF_ERR_EOF_TOO_SOON)
    return tf_fail(self->error, TF_ERR_IMAGE_TRUNCATED, "GIF data end before the picture is complete");
  return tf_fail(self->error, TF_ERR_IMAGE_CORRUPT, "GIF cannot be decoded: %s", text ? text : "damaged data");
}

/* Remembers the transparent colour; other extensions are passed over. */
static tf_code read_extension(gif_decoder *self) {
  GifByteType *block;
  int function;
  if (DGifGetExtension(self->gif, &function, &block) == GIF_ERROR) return fail_giflib(self, self->gif->Error);
  if (function == GRAPHICS_EXT_FUNC_CODE && block != NULL) {
    GraphicsControlBlock control;
    if (DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK) self->transparent = control.TransparentColor;
  }
  for (int i = 0; block != NULL; i++) {
    if (i == BLOCKS_MAX) return tf_fail(self->error, TF_ERR_IMAGE_CORRUPT, "GIF with an endless extension");
    if (DGifGetExtensionNext(self->gif, &block) == GIF_ERROR) return fail_giflib(self, self->gif->Error);
  }
  return TF_OK;
}

/* To the first frame's description. */
static tf_code find_frame(gif_decoder *self) {
  for (int i = 0; i < BLOCKS_MAX; i++) {
    GifRecordType type;
    if (DGifGetRecordType(self->gif, &type) == GIF_ERROR) return fail_giflib(self, self->gif->Error);
    if (type == TERMINATE_RECORD_TYPE)
      return tf_fail(self->error, TF_ERR_IMAGE_TRUNCATED, "GIF ends before its first picture");
    if (type == IMAGE_DESC_RECORD_TYPE)
      return DGifGetImageDesc(self->gif) == GIF_ERROR ? fail_giflib(self, self->gif->Error) : TF_OK;
    tf_code code = type == EXTENSION_RECORD_TYPE ? read_extension(self) : TF_OK;
    if (code != TF_OK) return code;
  }
  return tf_fail(self->error, TF_ERR_IMAGE_CORRUPT, "GIF without a picture in its first %d blocks", BLOCKS_MAX);
}

/* One row of indexes to RGB. Without any palette the indexes are grey, as in Pillow; an index past it is black. */
static void put_row(const gif_decoder *self, const ColorMapObject *map, const uint8_t *indexes, int32_t count,
                    uint8_t *rgb) {
  for (int32_t x = 0; x < count; x++, rgb += 3) {
    int index = indexes[x];
    if (index == self->transparent) continue; /* the canvas is white */
    GifColorType colour = {0, 0, 0};
    if (map == NULL)
      colour = (GifColorType){indexes[x], indexes[x], indexes[x]};
    else if (index < map->ColorCount)
      colour = map->Colors[index];
    rgb[0] = colour.Red;
    rgb[1] = colour.Green;
    rgb[2] = colour.Blue;
  }
}

static tf_code read_rows(gif_decoder *self, uint8_t *indexes, tf_image *out) {
  static const int firsts[] = {0, 4, 2, 1}, steps[] = {8, 8, 4, 2}; /* of an interlaced picture */
  const GifImageDesc *frame = &self->gif->Image;
  const ColorMapObject *map = frame->ColorMap ? frame->ColorMap : self->gif->SColorMap;
  for (int pass = 0; pass < (frame->Interlace ? 4 : 1); pass++)
    for (int y = frame->Interlace ? firsts[pass] : 0; y < frame->Height; y += frame->Interlace ? steps[pass] : 1) {
      if (DGifGetLine(self->gif, indexes, frame->Width) == GIF_ERROR) return fail_giflib(self, self->gif->Error);
      size_t at = (size_t)(frame->Top + y) * (size_t)out->width + (size_t)frame->Left;
      put_row(self, map, indexes, frame->Width, out->rgb + 3 * at);
    }
  return TF_OK;
}

static tf_code decode(gif_decoder *self, const tf_image_limits *limits, tf_image *out) {
  tf_code code = find_frame(self);
  if (code != TF_OK) return code;
  const GifImageDesc *frame = &self->gif->Image;
  if (frame->Left < 0 || frame->Top < 0 || frame->Width < 1 || frame->Height < 1)
    return tf_fail(self->error, TF_ERR_IMAGE_CORRUPT, "GIF frame of %d x %d pixels", frame->Width, frame->Height);
  int64_t width = (int64_t)frame->Left + frame->Width, height = (int64_t)frame->Top + frame->Height;
  if (width < self->gif->SWidth) width = self->gif->SWidth;
  if (height < self->gif->SHeight) height = self->gif->SHeight;
  code = tf_pixels_check("GIF", width, height, limits, self->error);
  if (code != TF_OK) return code;
  if ((uint64_t)((int64_t)frame->Width * frame->Height) / LZW_PIXELS_PER_BYTE_MAX > self->size)
    return tf_fail(self->error, TF_ERR_IMAGE_TRUNCATED, "GIF of %d x %d pixels cannot be complete in %zu bytes",
                   frame->Width, frame->Height, self->size);
  uint8_t *indexes;
  code = tf_pixels_allocate(frame->Width, 1, 1, &indexes, self->error);
  if (code == TF_OK) code = tf_pixels_allocate(width, height, 3, &out->rgb, self->error);
  if (code == TF_OK) {
    out->width = (int32_t)width;
    out->height = (int32_t)height;
    memset(out->rgb, 0xFF, (size_t)width * (size_t)height * 3);
    code = read_rows(self, indexes, out);
  }
  free(indexes);
  return code;
}

tf_code tf_gif_decode(const uint8_t *data, size_t size, const tf_image_limits *limits, tf_image *out, int *orientation,
                      tf_error *error) {
  (void)orientation; /* GIF has none */
  memset(out, 0, sizeof *out);
  gif_decoder self = {.data = data, .size = size, .transparent = NO_TRANSPARENT_COLOR, .error = error};
  int number = 0;
  self.gif = DGifOpen(&self, on_read, &number);
  if (self.gif == NULL) return fail_giflib(&self, number);
  tf_code code = decode(&self, limits, out);
  DGifCloseFile(self.gif, &number);
  if (code != TF_OK) tf_image_free(out);
  return code;
}
