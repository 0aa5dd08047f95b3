#include <cstdio>

#include "answer.h"

int main() {
  std::printf("answer=%d\n", answer());
  return answer() == 42 ? 0 : 1;
}
