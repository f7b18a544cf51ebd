//! Byzantine agreement on one value a height: malachite behind the federation's trait.
