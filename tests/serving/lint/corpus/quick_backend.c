/* A Triton backend that answers every request with nothing. A Python model takes two processes to
 * load, and most of the corpus is about what Triton's core says before and after: this one takes
 * none. Declared by hand: no headers of Triton's are needed. */
#include <stdint.h>
#include <stddef.h>

extern void* TRITONBACKEND_ResponseNew(void** response, void* request);
extern void* TRITONBACKEND_ResponseSend(void* response, uint32_t flags, void* error);
extern void* TRITONBACKEND_RequestRelease(void* request, uint32_t flags);

void* TRITONBACKEND_ModelInstanceExecute(void* instance, void** requests, uint32_t count)
{
  (void)instance;
  for (uint32_t each = 0; each < count; each++) {
    void* response = NULL;
    if (TRITONBACKEND_ResponseNew(&response, requests[each]) == NULL) {
      TRITONBACKEND_ResponseSend(response, 1, NULL);
    }
    TRITONBACKEND_RequestRelease(requests[each], 1);
  }
  return NULL;
}
