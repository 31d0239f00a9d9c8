// What bindings.cc calls to make corpora known to Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace pia {

// Before everything that takes corpora as arguments.
void bind_corpora(nanobind::module_& module);

}  // namespace pia
