package devstack

import "syscall"

// dieWithParent makes the kernel send a signal to a child when the thread that started it ends, which is how a child
// learns of a kill -9 of its parent. The starting goroutine must therefore keep its thread (see [spawn]).
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
