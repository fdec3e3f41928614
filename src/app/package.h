/* app/package.h - Core ML packages for `impetus check` and `impetus convert`. */
#ifndef IMP_APP_PACKAGE_H
#define IMP_APP_PACKAGE_H

#include "app/app.h"

/* A folder with a Manifest.json. */
bool app_is_package(const char *path);
app_result app_check_package(app *a, const char *path);
/* Predicted residency as JSON (NULL: out of memory) or as text on stdout. */
imp_status app_lint_json(const char *path, json_t **out, imp_error *err);
imp_status app_lint_print(const char *path, bool every, imp_error *err);

#endif
