/* http/page.c - the status page; web/index.html as bytes, made by mk/web.mk. */
#include "http/internal.h"
#include "web_index.h"

const char *http_page(size_t *n)
{
    *n = sizeof web_index - 1;
    return (const char *)web_index;
}
