//go:build !linux

package devstack

import "syscall"

// dieWithParent does nothing where the kernel has no such thing; the next start stops what a kill -9 left behind.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
