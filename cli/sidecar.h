/* A caption beside its photo: photo.txt beside photo.jpg, as training tools want it.
 * In: the photo's path, the caption. Out: a file with the caption and a newline, whole or not there at all.
 * Two photos whose names differ in the extension alone share the sidecar's name: the first one gets it. */
#ifndef TF_CLI_SIDECAR_H
#define TF_CLI_SIDECAR_H

#include "common/buffer.h"
#include "common/error.h"

/* "/a/photo.jpg" -> "/a/photo.txt"; a name without an extension gets one. Appends to out, with a NUL. */
void tf_sidecar_path(const char *photo, tf_buffer *out);
/* Something is there by that name. */
bool tf_sidecar_exists(const char *photo);
/* The sidecar holds exactly this caption: nobody has edited it. */
bool tf_sidecar_holds(const char *photo, const char *caption);
/* Writes it beside its place, syncs it, moves it there. overwrite false: what is there stays; *kept tells so;
 * true: it is replaced, but for a picture (by its signature) and what is no regular file.
 * TF_ERR_IO: the text says why; *disk_full: nothing more will fit there. */
tf_code tf_sidecar_write(const char *photo, const char *caption, bool overwrite, bool *kept, bool *disk_full,
                         tf_error *error);

#endif
