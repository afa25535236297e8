/* pgoutput.c: any bytes as one pgoutput message.
 *
 *     ./build.sh cc fuzz tests/fuzz/pgoutput.c /tmp/fuzz && /tmp/fuzz -max_len=400 CORPUS_DIR */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../unit/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena a = {0};
    struct buf text = {0};
    struct tw_error e = {0};
    struct msg m;
    char *copy = mem_resize(NULL, size + 1); /* ends where the message ends */
    if (size) memcpy(copy, data, size);
    copy[size] = '\0';
    status s = msg_decode(copy, size, &a, &m, &e);
    assert(s == e.code && (s == TW_OK || s == TW_EPROTO));
    assert(a.total <= 64 * size + 64);
    if (s == TW_OK) {
        assert(message_sound(&m, copy, size));
        message_text(&text, &m);
    }
    buf_free(&text);
    arena_free(&a);
    free(copy);
    return 0;
}
