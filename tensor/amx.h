/* How AMX's tile registers are set up. In: rows and bytes of the eight tiles. Out: what _tile_loadconfig reads.
 * Private to tensor/. Configurations are constants, as gcc 12 believes that the instruction reads 8 bytes only, and may
 * drop the writing of the others. */
#ifndef TF_TENSOR_AMX_H
#define TF_TENSOR_AMX_H

#include <stdint.h>

typedef struct tf_tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tf_tile_config;

/* All eight tiles 16 rows of 64 bytes. */
#define TF_TILES_WHOLE                                                                                                 \
  {                                                                                                                    \
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 }            \
  }

#endif
