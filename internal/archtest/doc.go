// Package archtest holds the rules of how the platform is built, as tests: which folder may import what, how long a
// file may grow, what tests must not do. It has no code of its own.
package archtest
