#include "answer.h"

int answer() { return 42; }
