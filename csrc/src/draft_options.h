// What a request drafts from, besides its corpora and a predicted output.
#pragma once

#include <memory>

#include "ngram_pool.h"

namespace pia {

struct DraftOptions {
  bool reads_counts = true;  // what was written before, in this request and in others
  bool recycles = false;     // what the model found likely before
  std::shared_ptr<const NgramPool> pool;  // guesses that somebody else makes, if any
};

}  // namespace pia
