#include "points.h"
int main(void){return 0;}
