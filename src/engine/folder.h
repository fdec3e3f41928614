/* engine/folder.h - the models in a folder. */
#ifndef IMP_FOLDER_H
#define IMP_FOLDER_H

#include "base/base.h"

/* A model's own name: its path without directories and the suffix of a model file. imp_sys_free it; NULL: no memory. */
char *imp_model_default_id(const char *path);
/* Every model in a folder with its name: NAME.gguf, and folders with a config.json. The strings are good during the call.
 * NOT_FOUND, IO. */
IMP_MUST_USE imp_status imp_folder_models(const char *folder,
                                          void (*fn)(void *user, const char *id, const char *path),
                                          void *user, imp_error *err);

#endif
