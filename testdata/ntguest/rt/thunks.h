/*
 * thunks.h - the entry code of the 256 vectors, 16 bytes each: it pushes an error code
 * of 0 where the processor pushes none, then the vector, and goes on at `to`.
 */
	/* Vectors that push an error code: 8, 10-14, 17, 21, 29, 30. */
	.macro thunk n, to
	.if (\n == 8) || (\n >= 10 && \n <= 14) || (\n == 17) || (\n == 21) || (\n == 29) || (\n == 30)
	.else
	push	$0
	.endif
	.byte	0x68
	.long	\n
	.byte	0xe9
	.long	\to - . - 4
	.endm

	.macro thunks to
	.set n, 0
	.rept 256
	.balign 16
	thunk	n, \to
	.set n, n + 1
	.endr
	.endm
