#!/bin/sh
./tree.d/run.sh && exec ./main
