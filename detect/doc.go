// Package detect sees abuse in the log of events as it happens: a certificate in
// two places, a secret that is tried on many devices, a revoked device that comes
// back. [Watch] reads the sealed log and passes its findings to a function that acts on them;
// it acts on nothing itself.
//
// Each detector is a machine that is fed events and has no clock and no database:
// the same events give the same findings. [Rules] is the catalog, with what a person
// reads about each; docs/detect.md is made from it. All memory is bounded, and what
// is at the bound is forgotten in the order in which it was last seen.
package detect
