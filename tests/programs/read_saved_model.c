/* Runs the default signature of a SavedModel through TensorFlow's C API: a reader without Python.
 *
 *   read_saved_model SENTENCEPIECE_LIBRARY FOLDER INPUT_OPERATION OUTPUT_OPERATION OUTPUT_INDEX < texts > predictions
 *
 * Texts and predictions are separated by zero bytes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static void check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  exit(1);
}

static char* read_all(size_t* size) {
  size_t capacity = 1 << 16;
  char* buffer = malloc(capacity);
  *size = 0;
  for (size_t got; (got = fread(buffer + *size, 1, capacity - *size, stdin)) > 0;) {
    *size += got;
    if (*size == capacity) buffer = realloc(buffer, capacity *= 2);
  }
  return buffer;
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  TF_Status* status = TF_NewStatus();
  TF_LoadLibrary(argv[1], status);
  check(status, "TF_LoadLibrary");

  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, argv[2], tags, 1, graph, NULL, status);
  check(status, "TF_LoadSessionFromSavedModel");

  size_t size;
  char* texts = read_all(&size);
  int64_t rows = 0;
  for (size_t i = 0; i < size; i++) rows += texts[i] == 0;
  TF_Tensor* input = TF_AllocateTensor(TF_STRING, &rows, 1, rows * sizeof(TF_TString));
  TF_TString* strings = TF_TensorData(input);
  char* text = texts;
  for (int64_t row = 0; row < rows; row++) {
    size_t length = strlen(text);
    TF_StringInit(&strings[row]);
    TF_StringCopy(&strings[row], text, length);
    text += length + 1;
  }

  TF_Output feed = {TF_GraphOperationByName(graph, argv[3]), 0};
  TF_Output fetch = {TF_GraphOperationByName(graph, argv[4]), atoi(argv[5])};
  if (feed.oper == NULL || fetch.oper == NULL) return 3;
  TF_Tensor* output = NULL;
  TF_SessionRun(session, NULL, &feed, &input, 1, &fetch, &output, 1, NULL, 0, NULL, status);
  check(status, "TF_SessionRun");
  const TF_TString* predictions = TF_TensorData(output);
  for (int64_t row = 0; row < TF_Dim(output, 0); row++) {
    fwrite(TF_StringGetDataPointer(&predictions[row]), 1, TF_StringGetSize(&predictions[row]), stdout);
    fputc(0, stdout);
  }
  return 0;
}
