package proc

import "syscall"

// dieWithParent makes the kernel send a signal to a child when the thread that started it ends.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
