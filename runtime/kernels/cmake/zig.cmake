# Linux on SATEN_MACHINE, from glibc 2.17 on (manylinux2014), by the compiler of PyPI's `ziglang`, which SATEN_ZIG names.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{SATEN_MACHINE})
set(CMAKE_CXX_COMPILER $ENV{SATEN_ZIG} c++ -target $ENV{SATEN_MACHINE}-linux-gnu.2.17)
set(SATEN_ZIG_COMPILES ON)
# A trial program would make zig build its C++ library first, for minutes.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
