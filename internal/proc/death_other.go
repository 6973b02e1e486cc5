//go:build !linux

package proc

import "syscall"

// dieWithParent does nothing where the kernel has no such thing.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
