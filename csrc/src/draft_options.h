// What a request drafts from, besides its corpora and a predicted output.
#pragma once

namespace pia {

struct DraftOptions {
  bool reads_counts = true;  // what was written before, in this request and in others
  bool recycles = false;     // what the model found likely before
};

}  // namespace pia
