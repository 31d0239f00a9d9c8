// N-gram pools for Python; a part of bindings.cc.
#pragma once

#include <nanobind/nanobind.h>

namespace pia {

void bind_ngram_pool(nanobind::module_& module);

}  // namespace pia
