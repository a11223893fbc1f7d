/** The contenders of the idempotency table. */
export interface Contender {
  readonly name: string;
  readonly framework: 'express' | 'fastify';
  readonly kind: (typeof kinds)[number] | 'express-idempotency';
}

const kinds = ['bare', 'ideal', 'ideal on Redis', 'holdfast', 'holdfast on Redis', 'node-idempotency'] as const;

export const contenders: readonly Contender[] = [
  ...(['express', 'fastify'] as const).flatMap((framework) =>
    kinds.map((kind) => ({ name: `${framework} ${kind}`, framework, kind })),
  ),
  { name: 'express express-idempotency', framework: 'express', kind: 'express-idempotency' },
];
